#!/usr/bin/env bash
# The numeric tests with the oldest versions that pyproject.toml declares, in an environment of their own:
#   bash scripts/test_versions.sh [tests/solver -k force ...]
# Makes .venv-oldest (6 GB with torch's CUDA build) when what is declared has changed, says what is installed and
# runs the tests of layers, low-rank maths, solver, snapshots and golden cases, or those that the arguments, which
# go to pytest, name. Run it when a range in pyproject.toml or the code's use of a library changes; scripts/test.sh
# and CI don't: it takes about half an hour. PYTHON names the interpreter (python3.11, the oldest, if not given),
# TORCH_INDEX a further index for torch, as in scripts/setup.sh.
set -euo pipefail
export PYTHONSAFEPATH=1 # as in scripts/setup.sh

cd "$(dirname "${BASH_SOURCE[0]}")/.."
venv=.venv-oldest
stamp=$venv/.oldest

python=${PYTHON:-python3.11}
wanted=$("$python" scripts/oldest_versions.py)
if [[ ! -f $stamp ]] || [[ $(<"$stamp") != "$wanted" ]]; then
  "$python" -m venv --clear "$venv"
  echo "test_versions: installing into $venv (takes minutes)"
  # in one call, so that pip finds further packages that go with the old ones, or says which ones don't go together
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} -r /dev/stdin -e . <<<"$wanted"
  echo "$wanted" >"$stamp"
fi
"$venv/bin/python" --version
"$venv/bin/python" -m pip freeze --exclude-editable | tr '\n' ' '
echo

tests=(tests/layers tests/lowrank tests/solver tests/snapshot tests/golden)
[[ $# == 0 ]] || tests=()
exec "$venv/bin/python" -m pytest -p no:cacheprovider "${tests[@]}" "$@"
