#!/usr/bin/env bash
# Structured sparsity learning (NIPS 2016) of ResNet-20's depth on CIFAR-10: layers in its blocks vanish as a whole.
#   bash scripts/paper/ssl_resnet.sh CIFAR10 [OUT]
# CIFAR10: what `forcereg data cifar10` takes, a folder or tar file. Variables: see sparse_lib.sh and lib.sh. The SSL
# branch's recipe: 64,000 iterations with every 3x3 convolution of the blocks as one group, 96,000 under masks. 13, 13
# and 20 hours on one CPU thread (at 750 ms an iteration of 256 images, AMD EPYC); never run on a GPU.
# shellcheck source=scripts/paper/lib.sh disable=SC2034 # what lib.sh reads
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
# shellcheck source=scripts/paper/sparse_lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/sparse_lib.sh"

begin ssl_resnet "$@"
"$FORCEREG" configs copy --force . 'examples/cifar10/cifar10_resnet20*' >/dev/null
cifar10
net=examples/cifar10/cifar10_resnet20_train_test.prototxt score=accuracy
small "$net"
with ssl 'res*_conv[0-9]:depth=1'
with masked 'res*:connectivity_mode=DISCONNECTED_GRPWISE'

shipped=examples/cifar10/cifar10_resnet20_solver.prototxt
solver baseline "$shipped"
solver ssl "$shipped" 'net="ssl.prototxt"' "block_group_decay=$(strength 0.007)"
solver finetune "$shipped" 'net="masked.prototxt"' base_lr=0.01 max_iter=96000 stepvalue=32000 stepvalue=64000
sparsify
