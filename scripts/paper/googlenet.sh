#!/usr/bin/env bash
# The paper's GoogLeNet on ImageNet: trained, retrained with force, cut at 5 % error, fine-tuned.
#   bash scripts/paper/googlenet.sh IMAGENET [OUT]
# IMAGENET: a folder of ilsvrc12_train_lmdb, ilsvrc12_val_lmdb and imagenet_mean.binaryproto, as Caffe's converters or
# `forcereg data images` and `forcereg data mean` make them. Variables: see lib.sh. The strengths are AlexNet's; the
# lengths are ours: to retrain a fifth, to fine-tune a tenth of the training.
# An estimate: 3 s an iteration of 32 images on one CPU thread (1.6 billion MACs an image and twice that backward, at
# the 50 billion MACs a second of conv3 in scripts/bench/README.md): 84 days to train, 17 for each of 7 retrainings, 8
# to fine-tune each. Not for a CPU; never run on a GPU.
# shellcheck source=scripts/paper/lib.sh disable=SC2034 # what lib.sh reads
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

begin googlenet "$@"
"$FORCEREG" configs copy --force . 'models/googlenet/*' >/dev/null
imagenet
small models/googlenet/train_val.prototxt

solver baseline models/googlenet/solver.prototxt
solver retrain models/googlenet/retrain_force_solver.prototxt
solver finetune models/googlenet/finetune_solver.prototxt

lambdas_Constant="1.5e-5 2e-5 2.5e-5" lambdas_Degradation="1.2e-5 2e-5 3.5e-5"
cut="--error 0.05" score=loss3/top-1 layers=(conv1/7x7_s2 conv2/3x3)
reproduce
