#!/usr/bin/env bash
# Structured sparsity learning (NIPS 2016) of ConvNet (cifar10_full) on CIFAR-10: rows and columns.
#   bash scripts/paper/ssl_convnet.sh CIFAR10 [OUT]
# CIFAR10: what `forcereg data cifar10` takes, a folder or tar file. Variables: see sparse_lib.sh and lib.sh. The SSL
# branch's recipe: 200,000 iterations of group lasso on the trained net, 150,000 under its zeros' masks. 5, 4.2 and 3.2
# hours on one CPU thread (at 76 ms an iteration of 100 images, AMD EPYC); never run on a GPU.
# shellcheck source=scripts/paper/lib.sh disable=SC2034 # what lib.sh reads
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
# shellcheck source=scripts/paper/sparse_lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/sparse_lib.sh"

begin ssl_convnet "$@"
"$FORCEREG" configs copy --force . 'examples/cifar10/cifar10_full*' >/dev/null
cifar10
net=examples/cifar10/cifar10_full_train_test.prototxt score=accuracy
small "$net"
with ssl 'conv*:breadth_decay_mult=1' 'conv*:kernel_shape_decay_mult=1'
with masked 'conv*:connectivity_mode=DISCONNECTED_GRPWISE'

shipped=examples/cifar10/cifar10_full_solver.prototxt
solver baseline "$shipped"
solver ssl "$shipped" 'net="ssl.prototxt"' "breadth_decay=$(strength 0.003)" "kernel_shape_decay=$(strength 0.003)" \
  weight_decay=0 max_iter=200000 stepvalue=100000 stepvalue=160000 stepvalue=180000
solver finetune "$shipped" 'net="masked.prototxt"' base_lr=0.0001 max_iter=150000 stepvalue=50000 stepvalue=100000
sparsify
