#!/usr/bin/env bash
# The paper's ResNet-20 on CIFAR-10, and ResNet-32 and -56: trained, retrained with force, cut at 5 % error, fine-tuned.
#   bash scripts/paper/resnet20.sh CIFAR10 [OUT]
#   N=3,5,9 bash scripts/paper/resnet20.sh CIFAR10 [OUT]    all three, each in OUT/resnet20, ...
# CIFAR10: what `forcereg data cifar10` takes, a folder or tar file. Variables: see lib.sh; N (3): blocks a group.
# ResNet-20: 13 hours to train, 6.7 for each of 7 retrainings, 1.7 to fine-tune each: 72 hours on one CPU thread (at
# 750 ms an iteration of 256 images, AMD EPYC); ResNet-32 about 1.7, ResNet-56 about 3 times that; never run on a GPU.
# shellcheck source=scripts/paper/lib.sh disable=SC2034 # what lib.sh reads
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

begin resnet20 "$@"
N=${N:-3}
[[ $N =~ ^[1-9][0-9]*(,[1-9][0-9]*)*$ ]] || wrong "N is '$N'; expected blocks with commas, as in 3,5,9"
lambdas_Constant="3e-6 1e-5 3e-5" lambdas_Degradation=$lambdas_Constant
cut="--error 0.05" score=accuracy layers=(res_grp1_1_conv1 res_grp3_3_conv2)
cifar10

# of_depth N: everything for one net, in a folder of its own.
of_depth() {
  name=resnet$((6 * $1 + 2))
  local net=examples/cifar10/cifar10_$name
  "$FORCEREG" new resnet --n "$1" --force . >/dev/null
  small "${net}_train_test_force.prototxt"
  mkdir -p "$name"
  cd "$name"
  ln -sfn ../examples examples

  local shipped=${net}_force_solver.prototxt
  solver baseline "$shipped" force_decay=0
  # the paper's advice: a trained net, a tenth of its rate
  solver retrain "$shipped" base_lr=0.01 max_iter=32000 stepvalue=16000 stepvalue=24000
  solver finetune "$shipped" force_decay=0 base_lr=0.01 max_iter=8000 stepvalue=4000 stepvalue=6000
  reproduce
}

for n in ${N//,/ }; do (of_depth "$n"); done
