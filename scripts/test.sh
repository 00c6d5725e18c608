#!/usr/bin/env bash
# Lint, types and all tests, in the project's own environment; arguments go to pytest:
#   bash scripts/test.sh [--all [--minutes N]] [-k lenet ...]
# --all runs fuzzers and stress tests in their long forms, too: each fuzzer for an hour, or N minutes.
# Tests run in one process per core, at most 8; -n 0 runs them in one, as --pdb needs.
# FORCEREG_DATA and FORCEREG_GOLDEN name folders of real data and of further golden cases (see tests/).
set -euo pipefail

if [[ ${1:-} == --all ]]; then
  set -- --long "${@:2}"
fi
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash scripts/setup.sh dev
python=.venv/bin/python

# Hundreds of processes of the tests import forcereg: it is compiled once, not by each, where the environment says so, too.
unset PYTHONDONTWRITEBYTECODE

# The oldest protobuf that is supported, beside the newest, for the test that runs the parser on it.
old_protobuf=4.25.8
if [[ ! -d .protobuf-4.25/protobuf-$old_protobuf.dist-info ]]; then
  rm -rf .protobuf-4.25
  $python -m pip install --quiet --disable-pip-version-check --no-deps --target .protobuf-4.25 \
    "protobuf==$old_protobuf"
fi

failed=()
step() {
  echo "== $*"
  "$python" -m "$@" || failed+=("$*")
}
step ruff check .
step ruff format --check .
step mypy --no-error-summary
step pytest -n auto --maxprocesses 8 --dist worksteal "$@"

if ((${#failed[@]})); then
  printf 'FAILED: %s\n' "${failed[@]}"
  exit 1
fi
echo "lint, types and tests passed"
