#!/usr/bin/env bash
# Trains a small Hope model on this machine, from nothing:
#
#   launch/local.sh [--config=FILE] [--workdir=DIR] [--config.train.steps=N ...]
#
# Makes .venv where it is missing (PYTHON=... names the interpreter), then runs
# hope.main with the arguments given here; --config is experiments/smoke.py and
# --workdir is runs/smoke where they are not given. Relative paths are taken
# from where it is called.
set -euo pipefail

# shellcheck source-path=SCRIPTDIR source=setup_env.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/setup_env.sh"

# is_given NAME ARGUMENTS...: whether --NAME is among them.
is_given() {
  local name=$1 argument
  shift
  for argument; do
    case $argument in
      "--$name" | "--$name="* | "-$name" | "-$name="*) return 0 ;;
    esac
  done
  return 1
}

is_given workdir "$@" || set -- --workdir="$ROOT/runs/smoke" "$@"
is_given config "$@" || set -- --config="$ROOT/experiments/smoke.py" "$@"
setup_env run

# exec, and no pipe: the run has the terminal, the signals and the exit code.
exec "$VENV_PYTHON" -m hope.main "$@"
