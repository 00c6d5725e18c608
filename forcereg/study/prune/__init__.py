"""Pruning a trained net, from outside its training.

spread    how a share of zeros is spread over layers, and how large it may be
limits    at which shares each layer is faster than dense, as measured here
run       the steps: aim, prune, fine-tune, measure
report    what came of it, as table and CSV
"""
