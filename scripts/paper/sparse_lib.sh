# shellcheck shell=bash
# What the scripts of structured sparsity share, beside lib.sh: each says its net, its phases' solvers and what group
# lasso acts on, and calls `sparsify`. Variables: see lib.sh (of the force's none), and
#   STRENGTH (1)    the lasso's strengths times this
# OUT/NAME.csv and NAME.txt: zero rows and columns of each layer and the accuracy behind each phase, the net's MACs once
# `forcereg shrink` has cut out what is zero; OUT/pictures/sparsity.svg: layers' zeros and the accuracy over iterations.
STRENGTH=${STRENGTH:-1}

# strength VALUE: times STRENGTH.
strength() { awk -v value="$1" -v times="$STRENGTH" 'BEGIN { printf "%.6g", value * times }'; }

# with NET WORD...: NET.prototxt, the script's net with fields of sparsity; see sparse_net.py.
with() { "$python" "$paper/sparse_net.py" "$net" "$1.prototxt" "${@:2}"; }

# sparsify: the baseline, group lasso on it by ssl.prototxt, its zeros frozen by masked.prototxt, what is zero cut out.
sparsify() {
  numbers STRENGTH "$STRENGTH"
  train baseline
  train ssl --weights "$trained" --log-json ssl.json
  train finetune --weights "$trained"
  echo "== table"
  "$python" "$paper/sparse_phases.py" "$name" --score "$score" | tee "$name.txt"
  mkdir -p pictures
  logged figures.out "$FORCEREG" plot ssl.json --only "*sparsity,$score" -o pictures/sparsity.svg >>figures.out
  echo "Tables, pictures, snapshots and logs are in $PWD."
}
