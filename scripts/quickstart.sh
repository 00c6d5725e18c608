#!/usr/bin/env bash
# See on real digits what force regularization does, in a few minutes:
#   bash scripts/quickstart.sh [--mnist DIR] [--out DIR]
# Trains LeNet without and with force, cuts both nets' convolutions to low rank, fine-tunes what is left, and
# prints one table. Without --mnist (or MNIST_DIR), a folder of MNIST's idx files, it takes the 1,797 digits
# that scikit-learn ships. Everything is written to --out, ./quickstart-out by default.
set -euo pipefail
export PYTHONSAFEPATH=1 # nothing in the folder that this is called from passes for a library's module

usage() {
  sed -n '2,6s/^# \{0,1\}//p' "$0"
  exit "$1"
}

mnist=${MNIST_DIR:-}
out=quickstart-out
while (($#)); do
  case $1 in
    --mnist) mnist=${2:?--mnist needs a folder}; shift 2 ;;
    --out) out=${2:?--out needs a folder}; shift 2 ;;
    -h | --help) usage 0 ;;
    *) echo "quickstart: unknown argument '$1'" >&2; usage 2 >&2 ;;
  esac
done

if [[ -n $mnist ]]; then
  [[ -d $mnist ]] || { echo "quickstart: --mnist $mnist: no such folder" >&2; exit 1; }
  mnist=$(cd "$mnist" && pwd)
fi
scripts=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)
bin=$(dirname "$scripts")/.venv/bin
bash "$scripts/setup.sh" digits
mkdir -p "$out"
cd "$out"
: >accuracies.tsv

iterations=1000
tuning=300
error=0.05  # each convolution keeps the rank that leaves this share of its weights' energy out
ranks=4,4   # a rank for conv1 and conv2 that both nets are cut to, to compare them at equal cost
test_batches=3 # of 100 images
[[ -z $mnist ]] || test_batches=100

exec 3>&2 # the commands are shown even where their own messages are kept in a file
forcereg() {
  echo "\$ forcereg $*" >&3
  "$bin/forcereg" "$@"
}

# solver FILE NET PREFIX ITERATIONS [LINE...]: write a solver file.
solver() {
  cat >"$1" <<END
net: "$2"
test_iter: $test_batches
test_interval: $4
test_initialization: false
base_lr: 0.01
momentum: 0.9
weight_decay: 0.0005
lr_policy: "multistep"
gamma: 0.1
stepvalue: $(($4 * 3 / 4))
display: 100
max_iter: $4
snapshot: $4
snapshot_prefix: "$3"
snapshot_format: HDF5
random_seed: 1
$(printf '%s\n' "${@:5}")
END
}

# accuracy NAME NET WEIGHTS: measure on the test images and note under NAME.
accuracy() {
  local value
  value=$(forcereg test --model "$2" --weights "$3" --iterations "$test_batches" 2>test.log |
    sed -n 's/.*] accuracy = //p') || { cat test.log >&2; exit 1; }
  echo "$1: accuracy $value"
  printf '%s\t%s\n' "$1" "$value" >>accuracies.tsv
}

# tune NAME NET WEIGHTS: measure, fine-tune by a solver without force, measure again.
tune() {
  accuracy "$1" "$2" "$3"
  solver "${1}_tuned_solver.prototxt" "$2" "${1}_tuned" "$tuning"
  forcereg train --solver "${1}_tuned_solver.prototxt" --weights "$3"
  accuracy "${1}_tuned" "$2" "${1}_tuned_iter_$tuning.caffemodel.h5"
}

# decomposed NAME WEIGHTS OPTION...: decompose; fails if no layer would be cheaper by that, and there is no such net.
decomposed() {
  forcereg decompose --snapshot "$2" "${@:3}" --out "$1" --json >"$1.json" 2>"$1.log" && return
  grep -q 'nothing to decompose' "$1.log" || { cat "$1.log" >&2; exit 1; }
  echo "$1: no layer would be cheaper"
  return 1
}

forcereg configs copy . --force examples/mnist/lenet_train_test.prototxt \
  examples/mnist/lenet_train_test_force.prototxt
if [[ -n $mnist ]]; then
  forcereg data mnist "$mnist" examples/mnist --force
else
  forcereg data digits examples/mnist --force
fi

solver plain_solver.prototxt examples/mnist/lenet_train_test.prototxt plain $iterations
solver force_solver.prototxt examples/mnist/lenet_train_test_force.prototxt force $iterations \
  'force_type: "Degradation"' 'force_decay: 0.002'
for kind in plain force; do
  forcereg train --solver ${kind}_solver.prototxt
  weights=${kind}_iter_$iterations.caffemodel.h5
  tune $kind "$(sed -n 's/^net: "\(.*\)"/\1/p' ${kind}_solver.prototxt)" "$weights"
  for how in "error $error" "ranks $ranks"; do
    name=${kind}_${how% *}
    if decomposed "$name" "$weights" "--${how% *}" "${how#* }"; then
      tune "$name" "$name.prototxt" "$name.caffemodel.h5"
    fi
  done
done

"$bin/python" "$scripts/quickstart.py" "$error" "$iterations" "$tuning" $((100 * test_batches)) \
  "${mnist:-the digits of scikit-learn}"
echo "Everything is in $PWD: solvers and nets (*.prototxt), weights (*.caffemodel.h5), ranks (*.json)."
echo "To go on: . $(printf %q "$bin/activate"), then forcereg --help"
