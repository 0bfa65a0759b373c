#!/bin/sh
# Make the environment in the folder $1, with the Python $2 or the first one that is good enough.
# By uv where it is there, by pip otherwise. An environment that works is kept and brought up to date.
set -eu
venv=$1
python=${2:-}

if [ -z "$python" ]; then
  for candidate in python3 python3.13 python3.12 python3.11; do
    if "$candidate" tools/check_machine.py --python >/dev/null 2>&1; then
      python=$candidate
      break
    fi
  done
fi
if [ -z "$python" ]; then
  echo "No suitable Python was found. Tried:" >&2
  for candidate in python3 python3.13 python3.12 python3.11; do
    echo "  $candidate: $("$candidate" tools/check_machine.py --python 2>&1 | head -n 1)" >&2
  done
  exit 1
fi
"$python" tools/check_machine.py --install "$venv"

works() {
  "$venv/bin/python" tools/check_machine.py --python >/dev/null 2>&1
}
if command -v uv >/dev/null 2>&1; then
  works || uv venv --clear --seed --python "$python" "$venv"
  uv pip install --python "$venv/bin/python" -c constraints.txt -e ".[lab,test]"
else
  if ! works || ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
    # only what is an environment is cleared
    clear=
    if [ -f "$venv/pyvenv.cfg" ]; then clear=--clear; fi
    "$python" -m venv $clear "$venv"
  fi
  "$venv/bin/python" -m pip install --disable-pip-version-check -c constraints.txt -e ".[lab,test]"
fi
echo "Installed: $venv is ready."
