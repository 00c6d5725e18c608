#!/usr/bin/env bash
# Make .venv in the project's top and install forcereg into it, with the given extras:
#   bash scripts/setup.sh [digits] [export] [jupyter] [leveldb] [lowrank] [mlflow] [openvino] [plot] [ray] [slurm]
#     [sparse] [tensorboard] [tune] [wandb] [dev]
# Does nothing when nothing changed since the last time. PYTHON names the interpreter to use (>= 3.11);
# TORCH_INDEX a further package index for torch, such as https://download.pytorch.org/whl/cpu, whose builds
# without CUDA are much smaller.
set -euo pipefail
export PYTHONSAFEPATH=1 # nothing in the folder that this is called from passes for a library's module

top=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
venv=$top/.venv
stamp=$venv/.forcereg-setup

# The first interpreter that is new enough and can make virtual environments.
find_python() {
  local candidate
  for candidate in ${PYTHON:-python3 python3.13 python3.12 python3.11 python}; do
    if "$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
      echo "$candidate"
      return
    fi
  done
  echo "setup: no Python >= 3.11 with venv found (looked for ${PYTHON:-python3, python3.11 to 3.13, python})." \
    "Install one (on Debian also its -venv package) or name it: PYTHON=/path/to/python bash $0" >&2
  return 1
}

# What the installation depends on; the folder too, because a virtual environment cannot be moved.
fingerprint() {
  { echo "$top"; cat "$top/pyproject.toml" "$top/constraints.txt"; } | cksum
}

wanted=$(printf '%s\n' "$@")
installed=""
if [[ -f $stamp ]]; then
  installed=$(tail -n +2 "$stamp")
  if [[ $(head -n 1 "$stamp") == "$(fingerprint)" ]] && [[ -x $venv/bin/python ]] &&
    [[ -z $(comm -13 <(sort -u <<<"$installed") <(sort -u <<<"$wanted") | sed '/^$/d') ]]; then
    exit 0
  fi
  rm "$stamp"
fi

if ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
  python=$(find_python)
  echo "setup: making $venv with $("$python" --version)"
  "$python" -m venv --clear "$venv"
fi
extras=$(printf '%s\n%s\n' "$installed" "$wanted" | sed '/^$/d' | sort -u)
pip=("$venv/bin/python" -m pip install --quiet --disable-pip-version-check -c "$top/constraints.txt")
echo "setup: installing torch (the first time this takes minutes)"
"${pip[@]}" ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} torch
echo "setup: installing forcereg${extras:+ with the extras} ${extras//$'\n'/, }"
"${pip[@]}" -e "$top${extras:+[${extras//$'\n'/,}]}"
{ fingerprint; echo "$extras"; } >"$stamp"
