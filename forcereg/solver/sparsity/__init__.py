"""Structured sparsity of the SSL branch of Caffe (Wen et al., NIPS 2016), and SkimCaffe's thresholds (ICLR 2017).

blocks       a weight as blocks, their norms, the gradient of group lasso
asked        what a solver and its net ask for, and what is wrong with that
individual   files of a weight decay for each value
zeroing      what a step does to weights behind the update: zeros, surgery, soft thresholds
pruning      the smallest weights of one layer or several, and how fast they are pruned
masks        which values an update may change
statistics   what is zero, and what the regularization adds to the loss, as displays tell it
advice       warnings: a decay too large for any zero, a rate that falls too early
"""
