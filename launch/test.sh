#!/usr/bin/env bash
# Runs every check: linter, formatter, type checker, tests.
#
#   launch/test.sh [ARGUMENTS OF PYTEST]     e.g. -m slow, -k memory, -n 0
#
# Makes .venv where it is missing (PYTHON=... names the interpreter). Each check
# runs even where one before it failed; the exit code is the first failure's.
set -uo pipefail

names=('ruff check' 'ruff format' 'pyrefly' 'pytest')
results=('not run' 'not run' 'not run' 'not run')
first_failure=0
report=runs/tests/pytest.xml

# Prints what happened, however the script ends.
# shellcheck disable=SC2329  # the trap calls it
conclude() {
  local code=$? i
  echo
  for i in "${!names[@]}"; do
    echo "${names[i]}: ${results[i]}"
  done
  if [[ -s $report ]]; then
    echo "Each test's outcome and time: $PWD/$report"
  fi
  if ((code == 0)); then
    echo 'All checks passed.'
  else
    echo "Not all checks passed (exit code $code); the output is above."
  fi
  exit "$code"
}
trap conclude EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# check INDEX COMMAND...: runs one check and keeps its result.
check() {
  local index=$1 code=0
  shift
  echo "== ${names[index]}"
  results[index]='interrupted'
  "$@" || code=$?
  if ((code == 0)); then
    results[index]='passed'
  else
    results[index]="failed (exit code $code)"
    ((first_failure != 0)) || first_failure=$code
  fi
}

# shellcheck source-path=SCRIPTDIR source=setup_env.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/setup_env.sh"
cd -- "$ROOT" || exit 1
rm -f -- "$report"
setup_env test

check 0 "$VENV_PYTHON" -m ruff check
check 1 "$VENV_PYTHON" -m ruff format --check
check 2 "$VENV_PYTHON" -m pyrefly check \
  --python-interpreter-path "$VENV_PYTHON"
check 3 "$VENV_PYTHON" -m pytest --numprocesses=auto --maxprocesses=4 \
  --dist=loadgroup --junitxml="$report" "$@"
exit "$first_failure"
