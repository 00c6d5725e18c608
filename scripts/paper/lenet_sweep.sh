#!/usr/bin/env bash
# Which force_decay and force_type to take: LeNet on MNIST, 3,000 iterations, 3 seeds of each setting, each cut to 30 % of
# its multiply-accumulates and fine-tuned for 500, the whole net as long beside it; and the ranks at 5 % error.
#   bash scripts/paper/lenet_sweep.sh MNIST_IDX_DIR [OUT_DIR]
# Prints the table and leaves OUT_DIR/sweep/results.csv and sweep.svg; run again it goes on. SEEDS (3), TUNING
# (500) and ITERATIONS (3000) shorten it for a try, the last one in an OUT_DIR of its own.
set -euo pipefail

mnist=${1:?usage: lenet_sweep.sh MNIST_IDX_DIR [OUT_DIR]}
out=${2:-sweep-out}
mnist=$(cd "$mnist" && pwd)
scripts=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
if [[ -z ${FORCEREG:-} ]]; then
  bash "$scripts/setup.sh" plot
  FORCEREG=$(dirname "$scripts")/.venv/bin/forcereg
fi

mkdir -p "$out"
cd "$out"
[[ -f examples/mnist/lenet_train_test_force.prototxt ]] || "$FORCEREG" configs copy . 'examples/mnist/*'
[[ -d examples/mnist/mnist_test_lmdb ]] || "$FORCEREG" data mnist --force "$mnist" examples/mnist

iterations=${ITERATIONS:-3000}
grep -vE '^(force_|max_iter|snapshot|random_seed|stepvalue|test_interval)' examples/mnist/lenet_force_solver.prototxt \
  >sweep_solver.prototxt
printf 'max_iter: %s\nstepvalue: %s\nstepvalue: %s\ntest_interval: %s\n' \
  "$iterations" $((iterations / 2)) $((iterations * 4 / 5)) "$iterations" >>sweep_solver.prototxt

"$FORCEREG" sweep --solver sweep_solver.prototxt --out sweep --seeds "${SEEDS:-3}" --max-macs 0.3 --error 0.05 \
  --finetune "${TUNING:-500}" --set force_decay=0,1e-5,1e-4,1e-3 --set force_type=Constant,Degradation
