#!/usr/bin/env bash
# The part of launch/pod.py tpu-vm that runs on every worker, over ssh:
#
#   tpu_vm.sh install        the environment, with jax for TPU
#   tpu_vm.sh start          training, detached: it outlives the connection
#   tpu_vm.sh status         a line: 'hope-worker HOST STATE', which is missing,
#                            running, lost, exited CODE or halted CODE
#   tpu_vm.sh stop SECONDS   SIGTERM, and SIGKILL after so many seconds
#   tpu_vm.sh halt SECONDS   the same, not to be started again by a follower
#   tpu_vm.sh logs LINES     the last lines and all that follow, until the end
#   tpu_vm.sh last LINES     the last lines, each with the name of the host
#
# It stands in launch/ of a copy of the repository, with command.sh, which
# trains, at the top of that copy.
set -euo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."

# uv takes a Python that is recent enough from the machine, or fetches one: the
# images of TPU VMs have Python 3.10.
install() {
  python3 -m pip install --quiet --upgrade --target .uv uv
  if [[ ! -x .venv/bin/python ]]; then
    .uv/bin/uv venv --quiet --python '>=3.11' .venv
  fi
  .uv/bin/uv pip install --quiet --python .venv/bin/python '.[tpu]'
}

# is_alive FILE: whether the process whose id is in run/FILE is there.
is_alive() {
  [[ -s run/$1 ]] && kill -0 "$(<"run/$1")" 2>/dev/null
}

# Kills what holds the chips, and removes the lock that it leaves: libtpu lets
# one process in.
release_devices() {
  local devices=() code=0
  shopt -s nullglob
  devices=(/dev/accel[0-9]* /dev/vfio/[0-9]*)
  shopt -u nullglob
  ((${#devices[@]})) || return 0
  sudo -n fuser --silent --kill -KILL "${devices[@]}" || code=$?
  if ((code > 1)); then  # 1: nobody holds them
    echo 'error: fuser could not free the TPU; is psmisc installed?' >&2
    return "$code"
  fi
  sudo -n rm -f /tmp/libtpu_lockfile
}

start() {
  stop 5
  release_devices
  mkdir -p run
  rm -f run/python run/keeper run/exit-code run/halted
  if [[ -e run/log ]]; then
    mv run/log run/log.before
  fi
  setsid bash launch/tpu_vm.sh train </dev/null >>run/log 2>&1 &
  until [[ -s run/python ]]; do
    sleep 0.1
    if ! kill -0 "$!" 2>/dev/null && [[ ! -s run/python ]]; then
      echo 'error: training could not be started:' >&2
      cat run/log >&2
      return 1
    fi
  done
}

# Waits for Python and keeps its exit code. No trap and no pipe: SIGTERM goes to
# Python itself, whose process id is that of the shell that becomes it.
train() {
  local code=0
  echo "$$" >run/keeper
  # shellcheck disable=SC2016  # the inner shell's own id
  bash -c 'echo $$ >run/python; exec bash command.sh' || code=$?
  echo "$code" >run/exit-code.new
  mv run/exit-code.new run/exit-code
}

status() {
  local state=missing
  if is_alive keeper; then
    state=running
  elif [[ -e run/keeper ]]; then
    state=lost
  fi
  if [[ -e run/exit-code ]]; then
    state=exited
    if [[ -e run/halted ]]; then
      state=halted
    fi
    state+=" $(<run/exit-code)"
  fi
  echo "hope-worker $(hostname) $state"
}

stop() {
  local tenths=$((10 * $1))
  if is_alive python; then
    kill -TERM "$(<run/python)" || true
  fi
  while is_alive python && ((tenths-- > 0)); do sleep 0.1; done
  if is_alive python; then
    kill -KILL "$(<run/python)" || true
  fi
  while is_alive keeper; do sleep 0.1; done
}

halt() {
  mkdir -p run
  touch run/halted
  stop "$1"
}

logs() {
  tail --lines="$1" --pid="$(<run/keeper)" --sleep-interval=0.2 -F run/log
}

last() {
  local host
  host=$(hostname)
  tail --lines="$1" run/log | sed "s/^/[$host] /"
}

"$@"
