#!/usr/bin/env bash
# Trains a small Hope model on this machine, from nothing:
#
#   launch/local.sh [--config=FILE] [--workdir=DIR] [--config.train.steps=N ...]
#
# Makes .venv where it is missing (PYTHON=... names the interpreter), then runs
# hope.main. Without arguments that is experiments/smoke.py, in runs/smoke;
# what is given here wins. Relative paths are taken from where it is called.
set -euo pipefail

# shellcheck source-path=SCRIPTDIR source=setup_env.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/setup_env.sh"
setup_env run

# exec, and no pipe: the run has the terminal, the signals and the exit code.
exec "$VENV_PYTHON" -m hope.main \
  --config="$ROOT/experiments/smoke.py" --workdir="$ROOT/runs/smoke" "$@"
