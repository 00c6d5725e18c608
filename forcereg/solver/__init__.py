"""Training. From the bottom up, each knows those before it alone:

update, force, regularizers/   one update of weights, as functions; what may be added to gradients
sparsity/                      structured sparsity: group lasso, zeros, masks, what is told of them
updater, passes, replica       that with its kept state; forward and backward, also among several processes
run                            what all parts are handed: a run's settings, its nets, whom to tell
steps                          iterations on the device, as CUDA graphs where that is possible
pull, trouble, ready, saving   what measures, explains, checks and writes
hooks                          the user's functions that are told of it (loads no torch)
rollback                       how often a run goes back from a loss that isn't finite (loads no torch)
goal, judge                    what is asked of tests (loads no torch); what they decide
clipping, snapshots            ranks that sink while training; what a run leaves and goes on from
build                          from a solver file to run, nets and steps
base                           a solver that owns these parts: its state between two iterations
loop                           the Solver: Caffe's order of iterations, tests and snapshots
resume, signals                what asks a Solver for something
asked, start                   which wishes go together; what a run starts from. Both load no torch
"""
