# shellcheck shell=bash
# What the paper's scripts share; each sources it, says its net and its three solvers, and calls `reproduce`.
#
#   SCRIPT DATA [OUT]        DATA: the folder or file that the script names; OUT: NAME-out by default
#
# and these variables:
#   SCALE (1)       all iterations times this: SCALE=0.1 for a try
#   LAMBDAS, TYPES  strengths of the force, "1e-4 1e-3", instead of the script's; types, "Constant Degradation", the
#                   first one the same whenever a script is run again
#   CUT             how the trained nets are cut, instead of the script's: decompose's options, "--max-macs 0.5"
#   SEED (1)        of the first training and of fine-tuning (retraining has 1)
#   DEVICE (auto)   cpu, cuda or cuda:1
#   SMOKE=1         a few iterations on made data, without DATA, to see that everything runs
#   FORCEREG        another forcereg than .venv's
#
# Every step that is done is left out when a script is run again, and one that was ended goes on, so another LAMBDAS
# adds to the same OUT. What comes out lies in OUT: NAME.csv and NAME.txt, the table; pictures/; snapshots and logs.
set -euo pipefail
export PYTHONSAFEPATH=1 # nothing in the folder that this is called from passes for a library's module

paper=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)
SMOKE=${SMOKE:-} SCALE=${SCALE:-1} SEED=${SEED:-1} DEVICE=${DEVICE:-auto}
read -ra types <<<"${TYPES:-Constant Degradation}"
tests=20
[[ -z $SMOKE ]] || SCALE=0 tests=2

# wrong WHAT: ends the script, which can't use a variable.
wrong() {
  echo "$name: $1" >&2
  exit 2
}

# numbers VARIABLE WORD...: all of them, or it ends.
numbers() {
  local word
  for word in "${@:2}"; do
    [[ $word =~ ^[0-9]*\.?[0-9]+(e-?[0-9]+)?$ ]] || wrong "$1 has '$word'; expected numbers, as in 0.1 or 1e-4"
  done
}

# among VARIABLE KNOWN WORD...: all of them are known, or it ends.
among() {
  local word
  for word in "${@:3}"; do
    [[ " $2 " == *" $word "* ]] || wrong "$1 has '$word'; expected of: $2"
  done
}

# begin NAME DATA [OUT]: into the folder of results; DATA becomes $data, which is made for SMOKE.
begin() {
  name=$1 data=${2:-}
  if [[ -z $data && -z $SMOKE ]]; then
    sed -n '2,/^[^#]/{/^# shellcheck/d; s/^#\( \|$\)//p}' "$0" >&2
    exit 2
  fi
  # shellcheck disable=SC2086 # several words
  numbers SCALE "$SCALE" && numbers LAMBDAS ${LAMBDAS:-}
  among TYPES "Constant Degradation" "${types[@]}"
  local out=${3:-$name-out}
  [[ -z $data ]] || data=$(cd "$(dirname "$data")" && pwd)/$(basename "$data")
  if [[ -z ${FORCEREG:-} ]]; then
    bash "$paper/../setup.sh" digits lowrank plot
    FORCEREG=$paper/../../.venv/bin/forcereg
  fi
  python=$(dirname "$FORCEREG")/python
  mkdir -p "$out"
  cd "$out"
}

# logged FILE COMMAND...: what the command says goes to the file; of a failed one the last lines are shown.
logged() {
  "${@:2}" 2>>"$1" || { tail -n 3 "$1" >&2; return 1; }
}

# converted FOLDER COMMAND...: the data that a command writes, unless a run before has come to their end.
converted() {
  [[ -f $1/converted ]] && return
  mkdir -p "$1"
  echo "== data"
  "${@:2}"
  touch "$1/converted"
}

# mnist: MNIST's LMDBs; for SMOKE the digits of scikit-learn.
mnist() {
  if [[ -n $SMOKE ]]; then
    converted examples/mnist "$FORCEREG" data digits --force examples/mnist
  else
    converted examples/mnist "$FORCEREG" data mnist --force "$data" examples/mnist
  fi
}

# cifar10: CIFAR-10's LMDBs and mean images.
cifar10() {
  if [[ -n $SMOKE ]]; then
    converted examples/cifar10 "$python" "$paper/made_data.py" cifar10 examples/cifar10
  else
    converted examples/cifar10 "$FORCEREG" data cifar10 --force "$data" examples/cifar10
  fi
}

# imagenet: the LMDBs and the mean image that Caffe's converters left in DATA, where the shipped nets look for them.
imagenet() {
  local one
  [[ -z $SMOKE ]] || converted made "$python" "$paper/made_data.py" imagenet made
  [[ -z $SMOKE ]] || data=$PWD/made
  for one in ilsvrc12_train_lmdb ilsvrc12_val_lmdb imagenet_mean.binaryproto; do
    [[ -e $data/$one ]] && continue
    echo "$name: $data/$one: not there; make it by forcereg data images, data mean" >&2
    exit 1
  done
  mkdir -p examples/imagenet data/ilsvrc12
  ln -sfn "$data"/ilsvrc12_{train,val}_lmdb examples/imagenet/
  ln -sfn "$data/imagenet_mean.binaryproto" data/ilsvrc12/
}

# small FILE...: for SMOKE nets of 2 images a batch and fully connected layers of 16.
small() {
  [[ -z $SMOKE ]] || sed -i -E 's/batch_size: [0-9]+/batch_size: 2/; s/num_output: (4096|1024)$/num_output: 16/' "$@"
}

# solver PHASE FROM [FIELD=VALUE...]: PHASE_solver.prototxt, a shipped solver with other values, SCALE's iterations and
# 21 tests, the last behind the last iteration.
solver() {
  local phase=$1 from=$2 fields=("${@:3}" "snapshot_prefix=\"$1\"" "random_seed=$SEED")
  [[ -z $SMOKE ]] || fields+=(test_iter=1)
  {
    echo "# $name, $phase: $from, iterations times $SCALE."
    grep -vE "^(#|($(printf '%s\n' test_interval "${fields[@]%%=*}" | paste -sd '|')):)" "$from"
    printf '%s\n' "${fields[@]}" | sed 's/=/: /'
  } | awk -v scale="$SCALE" -v tests="$tests" '
    function scaled(n, unit) { n = int(n * scale / unit + 0.5); return unit * (n > 1 ? n : 1) }
    /^(stepvalue|stepsize):/ { $2 = scaled($2, 1) }
    /^max_iter:/ { $2 = scaled($2, tests); print "test_interval: " $2 / tests }
    { print }' >"${phase}_solver.prototxt"
}

# count N SMOKE: iterations of a command, for SMOKE the second.
count() { [[ -n $SMOKE ]] && echo "$2" || awk -v n="$1" -v scale="$SCALE" 'BEGIN { printf "%d", n * scale + 0.5 }'; }

iterations_of() { sed -n 's/^max_iter: //p' "$1_solver.prototxt"; }

# train PHASE [OPTION...]: by PHASE's solver, to its end.
train() {
  trained=$1_iter_$(iterations_of "$1").caffemodel.h5
  [[ -f $trained ]] && return
  echo "== $1"
  logged "$1.log" "$FORCEREG" train --solver "$1_solver.prototxt" --resume auto --device "$DEVICE" "${@:2}"
}

# retrain TYPE: from the trained net, by each strength of this type (0 beside the first one's), and cut what comes out.
retrain() {
  local zero="" default=lambdas_$1
  [[ $1 != "${types[0]}" ]] || zero="0 "
  local -a values
  read -ra values <<<"$zero${LAMBDAS:-${!default}}"
  echo "== retrained by force: $1 ${values[*]}"
  # shellcheck disable=SC2086 # several words
  logged "retrain_$1.log" "$FORCEREG" sweep --solver retrain_solver.prototxt --weights "$trained" --out "retrain/$1" \
    --set force_decay="$(IFS=,; echo "${values[*]}")" --set force_type="$1" --error 0.05 $cut --device "$DEVICE" \
    >"retrain_$1.txt"
  strongest+=("retrain/$1/force_decay=${values[-1]},force_type=$1,seed=1")
}

# tune: every cut net, as cut/LABEL.*, further by the fine-tuning solver; tuned/LABEL.log.
tune() {
  local net label ending
  mkdir -p cut tuned
  for net in retrain/*/*/net_lowrank.prototxt; do
    label=$(label_of "$(dirname "$net")")
    [[ -f tuned/${label}_iter_$(iterations_of finetune).caffemodel.h5 ]] && continue
    echo "== fine-tuned: $label"
    # --weights takes commas for what parts several files
    for ending in prototxt caffemodel.h5; do ln -sfn "../${net%prototxt}$ending" "cut/$label.$ending"; done
    logged "tuned/$label.log" "$FORCEREG" finetune --solver finetune_solver.prototxt --resume auto --device "$DEVICE" \
      --model "cut/$label.prototxt" --weights "cut/$label.caffemodel.h5" --set snapshot_prefix="\"tuned/$label\""
  done
}

# figures: the paper's, of the trained net and of those retrained without and with the strongest force of each type.
figures() {
  local type folder nets=("$trained") labels="trained" tuned
  mkdir -p pictures
  for folder in "retrain/${types[0]}/force_decay=0,seed=1" "${strongest[@]}"; do
    nets+=("$folder/net_iter_$(iterations_of retrain).caffemodel.h5")
    labels+=,$(label_of "$folder" | tr _ ' ')
  done
  figure 1_basis filters "${nets[@]}" --labels "$labels" --layer "${layers[0]}" --basis
  figure 2_lda filters "${nets[@]}" --labels "$labels" --layer "${layers[1]}" --lda
  figure 3_angles filters "${nets[@]}" --labels "$labels" --layer "${layers[1]}" --angles
  for type in "${types[@]}"; do figure "4_ranks_$type" plot "retrain/$type/results.csv"; done
  tuned=$(basename -s .log tuned/*.log | tr _ ' ' | paste -sd ,)
  figure 5_finetuning plot tuned/*.log --labels "$tuned" --only "$score" \
    --line "whole=$(awk -F, '$2 == "0" { print $5; exit }' "$name.csv")"
}

figure() { "$FORCEREG" "${@:2}" -o "pictures/$1.svg" >>figures.out || { tail -n 3 figures.out >&2; exit 1; }; }

# label_of FOLDER: 1e-3_Constant for a run of a sweep, or no_force.
label_of() { basename "$1" | sed -E 's/^force_decay=//; s/,force_type=/_/; s/,seed=1$//; s/^0$/no_force/'; }

# reproduce: all phases by baseline_solver, retrain_solver and finetune_solver.prototxt, the table and the pictures.
# The script sets $lambdas_Constant and $lambdas_Degradation, $cut, $score, the accuracy's name, and $layers, two whose
# filters are pictured: as images, by their directions.
reproduce() {
  [[ -z $SMOKE ]] || LAMBDAS=${LAMBDAS:-1e-3}
  cut=${CUT:-$cut}
  train baseline
  local type
  strongest=()
  for type in "${types[@]}"; do retrain "$type"; done
  tune
  "$python" "$paper/phases.py" "$name" --score "$score" | tee "$name.txt"
  figures
  echo "Tables, pictures, snapshots and logs are in $PWD."
}
