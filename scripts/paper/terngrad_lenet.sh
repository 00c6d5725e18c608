#!/usr/bin/env bash
# TernGrad (NIPS 2017): LeNet on MNIST with gradients in two bits, beside float32.
#   bash scripts/paper/terngrad_lenet.sh MNIST [OUT]
# MNIST: the folder of its four idx files. Variables: see lib.sh, and
#   WORKERS ("2 4 8")  processes on this machine, which divide the batch of 64 between them, as in the paper
#   SEEDS   ("1")      each with a float32 run of its own; one process, as several give the same there
#   SCHEMES ("ternary")  also bf16, fp16, powersgd
#   CIFAR10            the folder or tar of CIFAR-10: cifar10_full with 2 workers, too
# 10,000 iterations each: 3 minutes of one CPU thread alone, and as processes as many times that as there are more than
# cores; cifar10_full 60,000, a day. Never run on a GPU. What comes out: OUT/terngrad_lenet.csv, accuracies and points
# off float32.
# shellcheck source=scripts/paper/lib.sh disable=SC2034 # what lib.sh reads
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

name=terngrad_lenet
[[ -z $SMOKE ]] || WORKERS=${WORKERS:-2}
read -ra workers <<<"${WORKERS:-2 4 8}"
read -ra seeds <<<"${SEEDS:-1}"
read -ra schemes <<<"${SCHEMES:-ternary}"
numbers WORKERS "${workers[@]}" && numbers SEEDS "${seeds[@]}"
among SCHEMES "bf16 fp16 powersgd ternary" "${schemes[@]}"
cifar=${CIFAR10:-}
[[ -z $cifar ]] || cifar=$(cd "$(dirname "$cifar")" && pwd)/$(basename "$cifar")
begin terngrad_lenet "$@"
"$FORCEREG" configs copy --force . 'examples/mnist/*' 'examples/cifar10/*' >/dev/null
mnist

# accuracy PHASE: of its last test, in percent.
accuracy() {
  sed -n 's/.*Test net output #[0-9]*: accuracy = //p' "$1.log" | tail -n 1 | awk '{ print 100 * $1 }'
}

# row NET WORKERS GRADIENTS SEED PHASE FLOAT
row() {
  local found
  found=$(accuracy "$5")
  awk -v row="$1,$2,$3,$4,$found" -v found="$found" -v whole="$6" 'BEGIN { printf "%s,%.2f\n", row, found - whole }'
}

# compare NET SOLVER WORKERS...: float32 by one process, every scheme by several; rows of the table.
compare() {
  local net=$1 shipped=$2 seed count scheme whole phase
  for seed in "${seeds[@]}"; do
    SEED=$seed
    phase=${net}_float32_seed$seed
    solver "$phase" "$shipped"
    train "$phase" >&2
    whole=$(accuracy "$phase")
    row "$net" 1 float32 "$seed" "$phase" "$whole"
    for count in "${@:3}"; do
      for scheme in "${schemes[@]}"; do
        phase=${net}_${scheme}_${count}_seed$seed
        solver "$phase" "$shipped"
        train "$phase" --nproc "$count" --global-batch --gradients "$scheme" >&2
        row "$net" "$count" "$scheme" "$seed" "$phase" "$whole"
      done
    done
  done
}

{
  echo "net,workers,gradients,seed,accuracy,points_off"
  compare lenet examples/mnist/lenet_solver.prototxt "${workers[@]}"
  if [[ -n $cifar ]]; then
    data=$cifar
    cifar10 >&2
    compare cifar10_full examples/cifar10/cifar10_full_solver.prototxt 2
  fi
} >"$name.tmp"
mv "$name.tmp" "$name.csv"
cat "$name.csv"
