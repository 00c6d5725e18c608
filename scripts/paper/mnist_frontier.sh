#!/usr/bin/env bash
# Where force helps: accuracy against cost of LeNets trained without force and with both types, every decomposition method.
#   bash scripts/paper/mnist_frontier.sh MNIST_IDX_DIR [OUT_DIR]
# Trains three nets for 10,000 iterations, seed 1, then cuts them: conv2 alone to ranks 2 to 16 (conv2.csv), both
# layers to 4/4 fine-tuned for 1,000 iterations (ranks44.csv), and with every method to shares of the net's MACs,
# fine-tuned for 300 (methods.csv); each with a picture. Run again it goes on. SEED, ITERATIONS and METHODS
# change it for a try, in an OUT_DIR of its own.
set -euo pipefail

mnist=${1:?usage: mnist_frontier.sh MNIST_IDX_DIR [OUT_DIR]}
out=${2:-frontier-out}
seed=${SEED:-1}
iterations=${ITERATIONS:-10000}
methods=${METHODS:-pca,svd,kmeans,vh,tucker2,cp}
mnist=$(cd "$mnist" && pwd)
scripts=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
if [[ -z ${FORCEREG:-} ]]; then
  bash "$scripts/setup.sh" lowrank plot
  FORCEREG=$(dirname "$scripts")/.venv/bin/forcereg
fi

mkdir -p "$out"
cd "$out"
[[ -f examples/mnist/lenet_force_solver.prototxt ]] || "$FORCEREG" configs copy . 'examples/mnist/*'
[[ -d examples/mnist/mnist_test_lmdb ]] || "$FORCEREG" data mnist --force "$mnist" examples/mnist
solver=examples/mnist/lenet_force_solver.prototxt

# variant NAME TYPE DECAY: train one net, unless it is trained already.
variant() {
  [[ -f $1_iter_$iterations.caffemodel.h5 ]] && return
  echo "== training $1: force_type $2, force_decay $3"
  "$FORCEREG" train --solver "$solver" --seed "$seed" --max-iter "$iterations" --resume auto \
    --set force_type="$2" --set force_decay="$3" --set snapshot_prefix="\"$1\"" --set snapshot_format=HDF5 \
    2>"$1.log" || { tail -n 3 "$1.log" >&2; exit 1; }
}
variant none Degradation 0
variant Degradation Degradation 0.001
variant Constant Constant 0.0001

nets=({none,Degradation,Constant}_iter_"$iterations".caffemodel.h5)
common=("${nets[@]}" --labels "no force,Degradation 0.001,Constant 0.0001" --solver "$solver")

"$FORCEREG" frontier "${common[@]}" --only-layers conv2 --latency no -o conv2.svg \
  --ranks 2 --ranks 4 --ranks 6 --ranks 8 --ranks 10 --ranks 12 --ranks 16
"$FORCEREG" frontier "${common[@]}" --ranks 4,4 --latency no --finetune 1000 -o ranks44.svg
"$FORCEREG" frontier "${common[@]}" --method "$methods" --max-macs 0.22,0.25,0.3,0.4 --finetune 300 -o methods.svg
echo "Tables, pictures, snapshots and logs are in $PWD."
