#!/usr/bin/env bash
# Where force helps: accuracy against cost of LeNets trained without force and with both types, every decomposition method.
#   bash scripts/paper/mnist_frontier.sh MNIST_IDX_DIR [OUT_DIR]
# For each of SEEDS ("1 2 3") trains three nets for 10,000 iterations, then cuts them: conv2 alone to ranks 2 to 16 (conv2),
# both layers to 4/4 fine-tuned for 1,000 iterations (ranks44), and with every method to shares of the net's MACs,
# fine-tuned for 300 (methods). Each gives a CSV file and a picture a seed, and one of all seeds with a table of means.
# Run again it goes on. ITERATIONS and METHODS change it for a try, in an OUT_DIR of its own.
set -euo pipefail

mnist=${1:?usage: mnist_frontier.sh MNIST_IDX_DIR [OUT_DIR]}
out=${2:-frontier-out}
read -ra seeds <<<"${SEEDS:-1 2 3}"
iterations=${ITERATIONS:-10000}
methods=${METHODS:-pca,svd,kmeans,vh,tucker2,cp}
mnist=$(cd "$mnist" && pwd)
scripts=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
if [[ -z ${FORCEREG:-} ]]; then
  bash "$scripts/setup.sh" lowrank plot
  FORCEREG=$(dirname "$scripts")/.venv/bin/forcereg
fi
python=$(dirname "$FORCEREG")/python

mkdir -p "$out"
cd "$out"
[[ -f examples/mnist/lenet_force_solver.prototxt ]] || "$FORCEREG" configs copy . 'examples/mnist/*'
[[ -d examples/mnist/mnist_test_lmdb ]] || "$FORCEREG" data mnist --force "$mnist" examples/mnist
solver=examples/mnist/lenet_force_solver.prototxt

# variant NAME TYPE DECAY SEED: train one net, unless it is trained already.
variant() {
  local prefix=$1_$4
  [[ -f ${prefix}_iter_$iterations.caffemodel.h5 ]] && return
  echo "== training $prefix: force_type $2, force_decay $3, seed $4"
  "$FORCEREG" train --solver "$solver" --seed "$4" --max-iter "$iterations" --resume auto \
    --set force_type="$2" --set force_decay="$3" --set snapshot_prefix="\"$prefix\"" --set snapshot_format=HDF5 \
    2>"$prefix.log" || { tail -n 3 "$prefix.log" >&2; exit 1; }
}

for seed in "${seeds[@]}"; do
  variant none Degradation 0 "$seed"
  variant Degradation Degradation 0.001 "$seed"
  variant Constant Constant 0.0001 "$seed"
  nets=({none,Degradation,Constant}_"${seed}_iter_$iterations".caffemodel.h5)
  common=("${nets[@]}" --labels "no force,Degradation 0.001,Constant 0.0001" --solver "$solver" --latency no)
  "$FORCEREG" frontier "${common[@]}" --only-layers conv2 -o "seed$seed/conv2.svg" \
    --ranks 2 --ranks 4 --ranks 6 --ranks 8 --ranks 10 --ranks 12 --ranks 16
  "$FORCEREG" frontier "${common[@]}" --ranks 4,4 --finetune 1000 -o "seed$seed/ranks44.svg"
  "$FORCEREG" frontier "${common[@]}" --method "$methods" --max-macs 0.22,0.25,0.3,0.4 --finetune 300 \
    -o "seed$seed/methods.svg"
done

folders=("${seeds[@]/#/seed}")
"$python" "$scripts/paper/seeds.py" ranks44 ranks44.csv "${folders[@]}"
for name in conv2 methods; do
  "$python" "$scripts/paper/seeds.py" "$name" "$name.csv" "${folders[@]}" --picture "$name.svg"
done
echo "Tables, pictures, snapshots and logs are in $PWD."
