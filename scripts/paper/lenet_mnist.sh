#!/usr/bin/env bash
# The paper's LeNet on MNIST: the README solver and three variants, 10,000 iterations each.
#   bash scripts/paper/lenet_mnist.sh MNIST_IDX_DIR [OUT_DIR]
# Prints accuracy and the ranks of conv1 (20 filters) and conv2 (50) at 5 % error beside what a real Caffe
# build gave on the same data. About 2 to 3 minutes a variant on two cores. SEED (2) seeds all of them; ITERATIONS
# (10000) shortens the runs for a try, the Caffe figures then don't apply.
set -euo pipefail

mnist=${1:?usage: lenet_mnist.sh MNIST_IDX_DIR [OUT_DIR]}
out=${2:-paper-out}
seed=${SEED:-2}
iterations=${ITERATIONS:-10000}
mnist=$(cd "$mnist" && pwd)
scripts=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
if [[ -z ${FORCEREG:-} ]]; then
  bash "$scripts/setup.sh"
  FORCEREG=$(dirname "$scripts")/.venv/bin/forcereg
fi

mkdir -p "$out"
cd "$out"
[[ -d examples/mnist ]] || "$FORCEREG" configs copy . 'examples/mnist/*'
[[ -d examples/mnist/mnist_train_lmdb ]] || "$FORCEREG" data mnist "$mnist" examples/mnist
: >results.tsv

# variant NAME TYPE DECAY "CAFFE'S ACCURACY" "CAFFE'S RANKS": train, test and rank one setting.
variant() {
  local solver=$1_solver.prototxt started model ranks accuracy
  grep -vE '^(force_|max_iter|snapshot|random_seed)' examples/mnist/lenet_force_solver.prototxt >"$solver"
  printf 'max_iter: %s\nsnapshot: %s\nsnapshot_prefix: "%s"\nsnapshot_format: HDF5\nrandom_seed: %s\n' \
    "$iterations" "$iterations" "$1" "$seed" >>"$solver"
  printf 'force_decay: %s\nforce_type: "%s"\n' "$3" "$2" >>"$solver"
  echo "== $1: force_type $2, force_decay $3"
  started=$(date +%s)
  "$FORCEREG" train --solver "$solver" 2>"$1.log" || { tail -n 3 "$1.log" >&2; exit 1; }
  local seconds=$(($(date +%s) - started))
  model=$1_iter_$iterations.caffemodel.h5
  accuracy=$("$FORCEREG" test --model examples/mnist/lenet_train_test_force.prototxt --weights "$model" \
    --iterations 100 2>/dev/null | sed -n 's/.*] accuracy = //p')
  ranks=$("$FORCEREG" decompose --snapshot "$model" --error 0.05 --even-if-dearer --json |
    "$(dirname "$FORCEREG")/python" -c 'import json, sys; print(*(l["rank"] for l in json.load(sys.stdin)["layers"]), sep="/")')
  printf '%s\t%s\t%s\t%s\t%s\t%s\t%s\n' "$2" "$3" "$accuracy" "$4" "$ranks" "$5" "$seconds" >>results.tsv
}

variant plain Degradation 0 0.991 12/44
variant constant_0.001 Constant 0.001 0.930-0.933 1/1
variant constant_0.0001 Constant 0.0001 0.988-0.990 9-11/2
variant degradation_0.001 Degradation 0.001 0.983-0.984 1/1

printf '\n%-12s %-12s %-9s %-12s %-7s %-12s %s\n' force_type force_decay accuracy "(Caffe)" ranks "(Caffe)" seconds
while IFS=$'\t' read -r type decay accuracy theirs ranks caffe_ranks seconds; do
  printf '%-12s %-12s %-9s %-12s %-7s %-12s %s\n' "$type" "$decay" "$accuracy" "($theirs)" "$ranks" "($caffe_ranks)" "$seconds"
done <results.tsv
echo "Snapshots, logs and low-rank nets are in $PWD."
