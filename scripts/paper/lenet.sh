#!/usr/bin/env bash
# The paper's LeNet on MNIST.
#   bash scripts/paper/lenet.sh MNIST [OUT]
# MNIST: the folder of its four idx files. Variables: see lib.sh, and
#   STEPS   of "paper caffe frontier sweep", in OUT/STEP each; all of them by default, 6 hours on one CPU thread (at
#           17 ms an iteration of 64 images, AMD EPYC); never run on a GPU:
#     paper     like the other nets: trained, retrained with force, cut at 5 % error, fine-tuned; 25 minutes
#     caffe     is it Caffe's result? the original README's solver and three variants; 12 minutes
#     frontier  where does force help? accuracy against cost, every method of decomposition; 3 hours
#     sweep     which force? seven settings cut to 30 % of the MACs; 2 hours
#   SEEDS   of frontier ("1 2 3") and how many of sweep (as many)
#   METHODS of frontier
# shellcheck source=scripts/paper/lib.sh disable=SC2034 # what lib.sh reads
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

read -ra steps <<<"${STEPS:-paper caffe frontier sweep}"
name=lenet
among STEPS "paper caffe frontier sweep" "${steps[@]}"
begin lenet "$@"
"$FORCEREG" configs copy --force . 'examples/mnist/*' >/dev/null
mnist
small examples/mnist/*train_test*.prototxt

shipped=examples/mnist/lenet_force_solver.prototxt
[[ -z $SMOKE ]] || SEEDS=${SEEDS:-1} METHODS=${METHODS:-pca,vh}
read -ra seeds <<<"${SEEDS:-1 2 3}"

paper() {
  solver baseline examples/mnist/lenet_solver.prototxt
  # the paper's advice: a trained net, a tenth of its rate
  solver retrain "$shipped" base_lr=0.001
  solver finetune examples/mnist/lenet_solver.prototxt base_lr=0.001 max_iter=2000 lr_policy='"fixed"'
  lambdas_Constant="1e-4 1e-3 1e-2" lambdas_Degradation=$lambdas_Constant
  cut="--error 0.05" score=accuracy layers=(conv1 conv2)
  reproduce
}

# caffe: accuracy and ranks at 5 % error beside what a real Caffe build gave on the same data.
caffe() {
  local type decay accuracy ranks theirs caffe_ranks started
  local row='%-12s %-12s %-9s %-14s %-7s %-9s %s\n'
  # shellcheck disable=SC2059 # both lines of one form
  printf "$row" force_type force_decay accuracy "(Caffe)" ranks "(Caffe)" seconds >results.txt
  while read -r type decay theirs caffe_ranks; do
    solver "${type}_$decay" "$shipped" "force_type=\"$type\"" "force_decay=$decay"
    started=$SECONDS
    train "${type}_$decay"
    accuracy=$(sed -n 's/.*Test net output #0: accuracy = //p' "${type}_$decay.log" | tail -n 1)
    ranks=$("$FORCEREG" ranks "$trained" --error 0.05 --json |
      "$python" -c 'import json, sys; print(*(one["ranks"][0] for one in json.load(sys.stdin)["layers"]), sep="/")')
    # shellcheck disable=SC2059
    printf "$row" "$type" "$decay" "$accuracy" "($theirs)" "$ranks" "($caffe_ranks)" $((SECONDS - started)) \
      >>results.txt
  done <<'END'
Degradation 0 0.991 12/44
Constant 0.001 0.930-0.933 1/1
Constant 0.0001 0.988-0.990 9-11/2
Degradation 0.001 0.983-0.984 1/1
END
  cat results.txt
}

# frontier: nets of each seed, trained without force and with either type, cut: conv2 alone (conv2), both layers to 4/4
# (ranks44), and to shares of the net's MACs by every method (methods); a CSV and a picture of each seed and of all.
frontier() {
  local one kind nets folders common
  for one in "${seeds[@]}"; do
    SEED=$one
    solver "none_$one" "$shipped" force_decay=0
    solver "Degradation_$one" "$shipped" 'force_type="Degradation"' force_decay=0.001
    solver "Constant_$one" "$shipped" 'force_type="Constant"' force_decay=0.0001
    nets=()
    for kind in none Degradation Constant; do train "${kind}_$one"; nets+=("$trained"); done
    common=("${nets[@]}" --labels "no force,Degradation 0.001,Constant 0.0001" --latency no
      --solver "none_${one}_solver.prototxt" --device "$DEVICE")
    "$FORCEREG" frontier "${common[@]}" --only-layers conv2 -o "seed$one/conv2.svg" \
      --ranks 2 --ranks 4 --ranks 6 --ranks 8 --ranks 10 --ranks 12 --ranks 16
    "$FORCEREG" frontier "${common[@]}" --ranks 4,4 --finetune "$(count 1000 2)" -o "seed$one/ranks44.svg"
    "$FORCEREG" frontier "${common[@]}" --method "${METHODS:-pca,svd,kmeans,vh,tucker2,cp}" \
      --max-macs 0.22,0.25,0.3,0.4 --finetune "$(count 300 2)" -o "seed$one/methods.svg"
  done
  folders=("${seeds[@]/#/seed}")
  "$python" "$paper/seeds.py" ranks44 ranks44.csv "${folders[@]}"
  for kind in conv2 methods; do
    "$python" "$paper/seeds.py" "$kind" "$kind.csv" "${folders[@]}" --picture "$kind.svg"
  done
}

# sweep: 3,000 iterations a setting, each net cut to 30 % of its MACs and fine-tuned for 500, the whole net as long.
sweep() {
  solver sweep "$shipped" max_iter=3000 stepvalue=1500 stepvalue=2400
  "$FORCEREG" sweep --solver sweep_solver.prototxt --out . --seeds "${#seeds[@]}" --max-macs 0.3 --error 0.05 \
    --finetune "$(count 500 2)" --set force_decay=0,1e-5,1e-4,1e-3 --set force_type=Constant,Degradation \
    --device "$DEVICE"
}

for step in "${steps[@]}"; do
  echo "== $step"
  mkdir -p "$step"
  ln -sfn ../examples "$step/examples"
  (cd "$step" && "$step")
done
