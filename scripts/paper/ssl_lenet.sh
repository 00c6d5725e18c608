#!/usr/bin/env bash
# Structured sparsity learning (NIPS 2016) of LeNet on MNIST: rows and columns, as in its LeNets 4 and 5.
#   bash scripts/paper/ssl_lenet.sh MNIST [OUT]
# MNIST: the folder of its four idx files. Variables: see sparse_lib.sh and lib.sh. The SSL branch's recipe, from a
# trained net, 12,000 iterations, and 5,000 under its zeros' masks; 10 minutes on one CPU thread; never run on a GPU.
# shellcheck source=scripts/paper/lib.sh disable=SC2034 # what lib.sh reads
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
# shellcheck source=scripts/paper/sparse_lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/sparse_lib.sh"

begin ssl_lenet "$@"
"$FORCEREG" configs copy --force . 'examples/mnist/*' >/dev/null
mnist
net=examples/mnist/lenet_train_test.prototxt score=accuracy
small "$net"
with ssl 'conv*:breadth_decay_mult=1' 'conv*:kernel_shape_decay_mult=1'
with masked 'conv*:connectivity_mode=DISCONNECTED_GRPWISE'

shipped=examples/mnist/lenet_solver.prototxt
solver baseline "$shipped"
solver ssl "$shipped" 'net="ssl.prototxt"' "breadth_decay=$(strength 0.005)" "kernel_shape_decay=$(strength 0.005)" \
  weight_decay=0 gamma=0.1 max_iter=12000 stepvalue=6000 stepvalue=8000 stepvalue=10000
solver finetune "$shipped" 'net="masked.prototxt"' base_lr=0.001 max_iter=5000 stepvalue=3000 gamma=0.1
sparsify
