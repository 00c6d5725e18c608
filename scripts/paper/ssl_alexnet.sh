#!/usr/bin/env bash
# Structured sparsity learning (NIPS 2016) of AlexNet (CaffeNet) on ImageNet: rows and columns of its convolutions.
#   bash scripts/paper/ssl_alexnet.sh IMAGENET [OUT]
# IMAGENET: see alexnet.sh. Variables: see sparse_lib.sh and lib.sh. The SSL branch's recipe and factors: 450,000
# iterations of group lasso on the trained net, 220,000 under masks of single weights. An estimate: as long as
# alexnet.sh's training each, 54 days on one CPU thread; not for a CPU; never run on a GPU.
# shellcheck source=scripts/paper/lib.sh disable=SC2034 # what lib.sh reads
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
# shellcheck source=scripts/paper/sparse_lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/sparse_lib.sh"

begin ssl_alexnet "$@"
"$FORCEREG" configs copy --force . 'models/caffenet/*' >/dev/null
imagenet
net=models/caffenet/train_val.prototxt score=accuracy
small "$net"
with ssl 'conv[2-5]:kernel_shape_decay_mult=1' conv3:kernel_shape_decay_mult=1.7321 \
  conv4:kernel_shape_decay_mult=1.2247 'conv[1-4]:breadth_decay_mult=1'
with masked 'conv*:connectivity_mode=DISCONNECTED_ELTWISE'

shipped=models/caffenet/solver.prototxt
steps() { echo "lr_policy=\"multistep\" max_iter=$1"; printf 'stepvalue=%s\n' "${@:2}"; }
solver baseline "$shipped"
# shellcheck disable=SC2046 # several words
solver ssl "$shipped" 'net="ssl.prototxt"' "breadth_decay=$(strength 0.001)" "kernel_shape_decay=$(strength 0.001)" \
  base_lr=0.001 weight_decay=0.00025 $(steps 450000 250000 350000 400000)
# shellcheck disable=SC2046
solver finetune "$shipped" 'net="masked.prototxt"' base_lr=0.001 weight_decay=0.00025 \
  $(steps 220000 80000 160000 200000)
sparsify
