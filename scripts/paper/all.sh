#!/usr/bin/env bash
# Every run of the paper, JOBS (2) scripts at a time, one thread each:
#   bash scripts/paper/all.sh DATA [OUT]
#   SMOKE=1 bash scripts/paper/all.sh [OUT]    on made data, to see that everything runs: about 5 minutes of CPU time
# DATA: a folder of mnist/ (idx files), cifar10 (folder or tar), imagenet/ (see alexnet.sh); what isn't there is left
# out. Each script writes into OUT/SCRIPT and says what it does in OUT/SCRIPT.out; its hours stand in it. Variables: see
# lib.sh.
set -euo pipefail

paper=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)
if [[ -n ${SMOKE:-} ]]; then
  data="" out=${1:-paper-smoke}
elif (($#)); then
  data=$(cd "$1" && pwd) out=${2:-paper-out}
else
  sed -n '2,/^[^#]/s/^#\( \|$\)//p' "$0" >&2
  exit 2
fi
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
if [[ -z ${FORCEREG:-} ]]; then
  bash "$paper/../setup.sh" digits lowrank plot
  export FORCEREG=$paper/../../.venv/bin/forcereg
fi
mkdir -p "$out"
cd "$out"

# one SCRIPT DATA: run, or left out where its data aren't there.
one() {
  local source=${2:+$data/$2}
  if [[ -n $data && ! -e $source ]]; then
    echo "$1: left out, no $source"
  elif bash "$paper/$1.sh" "$source" "$1" >"$1.out" 2>&1; then
    echo "$1: done"
  else
    echo "$1: failed, $PWD/$1.out:" && tail -n 5 "$1.out"
    return 1
  fi
}
export -f one
export paper data
# the longest first; a failed one ends none of the others
xargs -P "${JOBS:-2}" -L 1 bash -c 'one "$@"' - <<'END'
lenet mnist
googlenet imagenet
alexnet imagenet
ssl_alexnet imagenet
gsl_alexnet imagenet
resnet20 cifar10
ssl_resnet cifar10
ssl_convnet cifar10
convnet cifar10
ssl_lenet mnist
terngrad_lenet mnist
END
