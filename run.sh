#!/usr/bin/env bash
# Tollgate's launcher: finds Python, makes the environment from the lock file, runs the command.
# `./run.sh --help` lists the commands.
set -euo pipefail

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
venv=$root/.venv

fail() {
  printf 'tollgate: %s\n' "$1" >&2
  exit 1
}

new_enough() { "$1" -c 'import sys, ensurepip; sys.exit(sys.version_info < (3, 12))' >/dev/null 2>&1; }

find_python() {
  local candidate
  for candidate in "${TOLLGATE_PYTHON:-}" python3.13 python3.12 python3 "${PYENV_ROOT:-$HOME/.pyenv}"/versions/3.1[2-9].*/bin/python3; do
    [ -n "$candidate" ] || continue
    candidate=$(command -v -- "$candidate" 2>/dev/null) || continue
    if new_enough "$candidate"; then
      printf '%s\n' "$candidate"
      return
    fi
  done
  if command -v uv >/dev/null 2>&1 && candidate=$(uv python find '>=3.12' 2>/dev/null) && new_enough "$candidate"; then
    printf '%s\n' "$candidate"
    return
  fi
  fail 'Python 3.12 or newer with venv is needed and was not there (PATH, pyenv, uv); install it, e.g. "apt install python3 python3-venv" or "uv python install 3.13", or name one in TOLLGATE_PYTHON.'
}

# prepare NAME LOCK: install the locked packages, once per content of the lock file
prepare() {
  local name=$1 lock=$2 stamp want python
  stamp=$venv/.installed-$name
  want=$(cksum <"$lock")
  [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$want" ] && return
  (
    ! command -v flock >/dev/null || flock 9  # two starts at once: the second waits
    [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$want" ] && exit 0
    if [ ! -x "$venv/bin/python" ] || ! new_enough "$venv/bin/python"; then
      python=$(find_python)
      printf 'tollgate: making the environment with %s (once, about a minute)\n' "$python" >&2
      "$python" -m venv --clear "$venv"
    fi
    printf 'tollgate: installing the locked packages (%s)\n' "$name" >&2
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps \
      -r "$lock" >&2 || fail 'the packages could not be installed; is the package index reachable?'
    printf '%s' "$want" >"$stamp"
  ) 9>"$root/.venv.lock" || exit 1
}

export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}
prepare run "$root/requirements.lock"

if [ "${1:-}" = test ]; then
  shift
  prepare test "$root/tests/requirements.lock"
  exec "$venv/bin/python" -m tests "$@"
fi
if [ "${1:-}" = bench ]; then
  shift
  prepare bench "$root/tests/bench/requirements.lock"
  exec "$venv/bin/python" -m tests.bench "$@"
fi
exec "$venv/bin/python" -m addons.cli "$@"
