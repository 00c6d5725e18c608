#!/usr/bin/env bash
# The paper's AlexNet on ImageNet: trained, retrained with force, cut by its mixed recipe (conv1 and conv2 by vh at 8
# and 40, conv3 to conv5 by pca at 150, 160 and 120), fine-tuned.
#   bash scripts/paper/alexnet.sh IMAGENET [OUT]
# IMAGENET: a folder of ilsvrc12_train_lmdb, ilsvrc12_val_lmdb and imagenet_mean.binaryproto, as Caffe's converters or
# `forcereg data images` and `forcereg data mean` make them. Variables: see lib.sh. The strengths are those of the
# paper's figure; the lengths are ours: to retrain a fifth, to fine-tune a tenth of the training.
# An estimate: 10 s an iteration of 256 images on one CPU thread (0.67 billion MACs an image and twice that backward, at
# the 50 billion MACs a second of conv3 in scripts/bench/README.md): 54 days to train, 10 for each of 7 retrainings, 5
# to fine-tune each. Not for a CPU; never run on a GPU.
# shellcheck source=scripts/paper/lib.sh disable=SC2034 # what lib.sh reads
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

begin alexnet "$@"
"$FORCEREG" configs copy --force . 'models/alexnet/*' >/dev/null
imagenet
small models/alexnet/train_val.prototxt

solver baseline models/alexnet/solver.prototxt
solver retrain models/alexnet/retrain_force_solver.prototxt
solver finetune models/alexnet/finetune_solver.prototxt

lambdas_Constant="1.5e-5 2e-5 2.5e-5" lambdas_Degradation="1.2e-5 2e-5 3.5e-5"
cut="--method mixed --rank-config models/alexnet/ranks_mixed.json" score=accuracy layers=(conv1 conv2)
reproduce
