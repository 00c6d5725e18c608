#!/usr/bin/env bash
# Every CPU figure with its goal in one table, from paired runs of about 8 minutes on 2 cores:
#   bash scripts/bench/all.sh [--mnist IDX_DIR] [--cifar DIR_OR_TAR] [--readme] [--quick]
# Without --mnist LeNet learns scikit-learn's digits, without --cifar the others random images; --readme puts the table
# into this folder's README.md; --quick only runs everything once. Takes the environment of scripts/setup.sh, or $PYTHON.
set -euo pipefail

usage() {
  sed -n '2,5s/^# \{0,1\}//p' "$0"
  exit "$1"
}

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)
top=$(dirname "$(dirname "$here")")
python=${PYTHON:-$top/.venv/bin/python}
mnist=() cifar=() quick=() readme=()
while (($#)); do
  case $1 in
    --mnist) mnist=("$1" "${2:?--mnist needs a folder}"); shift 2 ;;
    --cifar) cifar=("$1" "${2:?--cifar needs a folder or tar}"); shift 2 ;;
    --readme) readme=(--readme "$here/README.md"); shift ;;
    --quick) quick=(--quick); shift ;;
    -h | --help) usage 0 ;;
    *) echo "all.sh: unknown argument '$1'" >&2; usage 2 >&2 ;;
  esac
done
command -v "$python" >/dev/null || {
  echo "all.sh: no $python; run \`bash scripts/setup.sh digits\` first, or name an interpreter with PYTHON=..." >&2
  exit 1
}

out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
run() { "$python" "$here/$1.py" "${@:2}" "${quick[@]}" --json "$out/$1.json"; echo; }
run train "${mnist[@]}" "${cifar[@]}"
run startup "${mnist[@]}"
run growth
"$python" "$here/table.py" "${readme[@]}" "$out"/{train,startup,growth}.json
