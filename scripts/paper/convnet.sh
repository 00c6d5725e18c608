#!/usr/bin/env bash
# The paper's ConvNet (cifar10_full) on CIFAR-10: trained, retrained with force, cut at 5 % error, fine-tuned.
#   bash scripts/paper/convnet.sh CIFAR10 [OUT]
# CIFAR10: what `forcereg data cifar10` takes, a folder or tar file. Variables: see lib.sh.
# 5 hours to train, 1.3 for each of 7 retrainings, 0.4 to fine-tune each: 17 hours on one CPU thread (at 76 ms an
# iteration of 100 images, AMD EPYC); never run on a GPU.
# shellcheck source=scripts/paper/lib.sh disable=SC2034 # what lib.sh reads
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

begin convnet "$@"
"$FORCEREG" configs copy --force . 'examples/cifar10/cifar10_full*' >/dev/null
cifar10
small examples/cifar10/*train_test*.prototxt

shipped=examples/cifar10/cifar10_full
solver baseline ${shipped}_solver.prototxt
# the paper's advice: a trained net, a tenth of its rate
retrained=(base_lr=0.0001 max_iter=60000 stepvalue=40000 stepvalue=50000)
solver retrain ${shipped}_force_solver.prototxt "${retrained[@]}"
solver finetune ${shipped}_solver.prototxt base_lr=0.0001 max_iter=20000 stepvalue=10000 stepvalue=15000

lambdas_Constant="3e-5 1e-4 3e-4" lambdas_Degradation=$lambdas_Constant
cut="--error 0.05" score=accuracy layers=(conv1 conv2)
reproduce
