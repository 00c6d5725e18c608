#!/usr/bin/env bash
# Guided pruning (ICLR 2017) of AlexNet (CaffeNet) on ImageNet: L1 on the layers that zeros make faster here.
#   bash scripts/paper/gsl_alexnet.sh IMAGENET [OUT]
# IMAGENET: see alexnet.sh. Variables: see lib.sh (of the force's none). The paper's recipe: 1,000,000 iterations of L1
# 5e-5 at the rate 0.001, 640,000 under the masks. An estimate: 54 days to train and 190 to prune on one CPU thread; not
# for a CPU; never run on a GPU.
# shellcheck source=scripts/paper/lib.sh disable=SC2034 # what lib.sh reads
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

begin gsl_alexnet "$@"
"$FORCEREG" configs copy --force . 'models/caffenet/*' >/dev/null
imagenet
small models/caffenet/train_val.prototxt

solver baseline models/caffenet/solver.prototxt
train baseline
guided=--guided
# on made data no layer is worth it by chance
[[ -z $SMOKE ]] || guided=
echo "== pruned"
# shellcheck disable=SC2086 # nothing, or a word
logged prune.log "$FORCEREG" prune --solver baseline_solver.prototxt --weights "$trained" --method l1 --l1 5e-5 \
  $guided --target 0.9 --over "$(count 1000000 2)" --finetune "$(count 640000 2)" --rate 0.001 --out pruned \
  --device "$DEVICE" | tee gsl_alexnet.txt
echo "Tables, snapshots and logs are in $PWD."
