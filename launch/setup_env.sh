# shellcheck shell=bash
# The Python environment of the launch scripts. Sourced, not run:
#
#   source launch/setup_env.sh
#   setup_env run    # hope-jax and its requirements
#   setup_env test   # the same, and what the checks need
#
# Makes .venv in the repository where it is missing, and installs into it where
# its record of what is installed differs from requirements.txt and setup.cfg.
# PYTHON=... names the interpreter to make it with. Sets ROOT, the repository,
# and VENV_PYTHON, the interpreter of the environment. Any error ends the
# script that calls.

ROOT=$(CDPATH="" cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)
VENV=$ROOT/.venv
VENV_PYTHON=$VENV/bin/python
# There while an installation runs, and locked by it. Found without the lock, it
# tells that the installation was interrupted.
INSTALLING=$VENV/.installing

_env_error() {
  printf 'error: %s\n' "$*" >&2
  exit 1
}

_is_recent() {
  "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}

# Prints the interpreter to make the environment with.
_find_python() {
  local python found candidates=(python3 python3.13 python3.12 python3.11)
  if [[ -n ${PYTHON:-} ]]; then
    candidates=("$PYTHON")
  fi
  for python in "${candidates[@]}"; do
    if _is_recent "$python"; then
      printf '%s\n' "$python"
      return
    fi
  done
  found=$("${candidates[0]}" --version 2>&1) || found='does not run'
  _env_error "hope-jax needs Python 3.11 or newer, and ${candidates[0]} is not" \
    "($found). Install one, or name it: PYTHON=/path/to/python3.11 $0"
}

# What the environment is made from; any change means a new installation.
_wanted() {
  printf '%s\n' "$ROOT"
  cat -- "$ROOT/requirements.txt" "$ROOT/setup.cfg"
}

_check_venv() {
  local version='import sys; print("%d.%d" % sys.version_info[:2])'
  _is_recent "$VENV_PYTHON" || _env_error \
    "$VENV_PYTHON does not run or is older than Python 3.11;" \
    "delete $VENV to have it made anew."
  if [[ -n ${PYTHON:-} ]] &&
    [[ $("$PYTHON" -c "$version") != $("$VENV_PYTHON" -c "$version") ]]; then
    _env_error "$VENV has $("$VENV_PYTHON" --version), which is not" \
      "PYTHON=$PYTHON; delete it to have it made anew."
  fi
}

_make_venv() {
  local python=$1
  "$python" -c 'import ensurepip, venv' 2>/dev/null || _env_error \
    "$python has no venv module (Debian, Ubuntu: apt install python3-venv)."
  echo "Making $VENV with $("$python" --version) ($python)."
  "$python" -m venv "$VENV" || _env_error "$VENV could not be made; see above."
}

# Locks $INSTALLING through file descriptor 9. The lock is gone when the last
# process that has the descriptor, this one or pip, ends in whatever way.
_lock() {
  local python=$1
  if ! mkdir -p -- "$VENV" || ! exec 9>>"$INSTALLING"; then
    _env_error "$VENV cannot be written."
  fi
  "$python" -c 'import fcntl; fcntl.flock(9, fcntl.LOCK_EX | fcntl.LOCK_NB)' \
    2>/dev/null || _env_error \
    "another process is installing into $VENV; wait for it and try again."
}

_unlock() {
  rm -f -- "$INSTALLING"
  exec 9>&-
}

setup_env() {
  local extra=$1 wanted python fresh=1 target=$ROOT
  wanted=$(_wanted) || exit 1
  if [[ -e $VENV && ! -e $INSTALLING ]]; then
    fresh=0
    _check_venv
    if [[ $(cat -- "$VENV/.installed-$extra" 2>/dev/null) == "$wanted" ]]; then
      return
    fi
  fi

  python=$(_find_python) || exit 1
  if [[ -e $INSTALLING ]]; then
    _lock "$python"
    echo 'The last installation was interrupted; making the environment anew.'
    find "$VENV" -mindepth 1 -maxdepth 1 ! -name .installing \
      -exec rm -rf -- {} + || _env_error "$VENV could not be emptied."
  else
    _lock "$python"
  fi
  if ((fresh)); then
    _make_venv "$python"
  fi

  if [[ $extra != run ]]; then
    target+="[$extra]"
  fi
  echo 'Installing hope-jax and its requirements (minutes the first time).'
  if ! "$VENV_PYTHON" -m pip install --quiet --disable-pip-version-check \
    --editable "$target"; then
    # pip has undone what it did: what was installed before still is.
    _unlock
    _env_error 'the installation failed (see above); run this again to retry.'
  fi
  rm -f -- "$VENV"/.installed-*
  printf '%s\n' "$wanted" >"$VENV/.installed-run"
  printf '%s\n' "$wanted" >"$VENV/.installed-$extra"
  _unlock
}
