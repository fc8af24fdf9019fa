#!/usr/bin/env bash
# Trains on this machine: on its accelerators, on fake CPU devices, or on a cluster in small, to try things out.
#
#   launch/local.sh --workdir=runs/local                                  all devices that JAX finds, one process
#   DEVICES=4 launch/local.sh --mesh=data:4 --workdir=runs/mesh           four fake devices on the CPU
#   PROCESSES=4 DEVICES=2 launch/local.sh --mesh=data:8 --workdir=runs/cluster   four processes of two fake devices
#
# What to change, all of it in the environment:
#   PROCESSES  how many processes (1). More than one form a cluster over a free port of this machine, on the CPU.
#   DEVICES    fake CPU devices of each process; where it is empty, what JAX finds (with several processes: 1)
#   RESTARTS   how often to start again where the run leaves with 75, which means "saved, start me again" (0)
#   GRACE      seconds that the others get to save and leave once a process has left with a failure, or once this
#              script is told to stop (90); then SIGTERM, and SIGKILL 30 seconds later
#   PYTHON     the interpreter (.venv/bin/python of the repository)
#
# SIGTERM, Ctrl-C and a closed terminal are passed on: the run saves, and this script leaves with 75 without starting
# again. A signal to one of the processes alone is a preemption: all save, leave with 75, and are started again. So it is
# where one is killed: the others notice, and leave with 75.
# Exit status, that of the run: 0 done, 2 bad input, 75 start it again, 1 any other failure. No process outlives this
# script, even where it is killed.
set -euo pipefail
# Paths are those of the folder that this is started in; the code is found from anywhere.
repository=$(cd "$(dirname "$0")/.." && pwd)
export PYTHONPATH="$repository${PYTHONPATH:+:$PYTHONPATH}"

processes=${PROCESSES:-1} devices=${DEVICES:-} restarts=${RESTARTS:-0} grace=${GRACE:-90}
for setting in "PROCESSES=$processes" "DEVICES=${devices:-1}" "RESTARTS=$restarts" "GRACE=$grace"; do
  if ! [[ $setting =~ =(0|[1-9][0-9]*)$ && $setting != PROCESSES=0 && $setting != DEVICES=0 ]]; then
    echo "launch/local.sh: $setting is no number that makes sense here; take a whole one, like PROCESSES=4." >&2
    exit 2
  fi
done
python=$(command -v "${PYTHON:-$repository/.venv/bin/python}") || {
  echo "launch/local.sh: no interpreter at ${PYTHON:-$repository/.venv/bin/python}; run 'make .venv/.ready', or set PYTHON." >&2
  exit 2
}
if [[ -n $devices || $processes -gt 1 ]]; then
  export JAX_PLATFORMS=cpu XLA_FLAGS="${XLA_FLAGS:-} --xla_force_host_platform_device_count=${devices:-1}"
fi

stopping='' # the signal that this script was told to stop by
deadline='' # when the processes that are left get SIGTERM, in seconds of this script's life
pids=()

send() { # SIGNAL: to every process that still runs
  local pid
  for pid in $(jobs -rp); do
    kill -s "$1" -- "$pid" 2>/dev/null || true
  done
}

stop() { # SIGNAL
  stopping=$1
  deadline=$((SECONDS + grace))
  send TERM
}
trap 'stop INT' INT
trap 'stop TERM' TERM
trap 'stop HUP' HUP
# Whatever ends this script ends the groups that the processes lead, and with them what the processes started.
trap 'for pid in $(jobs -rp); do kill -s KILL -- "-$pid" 2>/dev/null || true; done' EXIT

start() { # FLAGS: every process of one attempt
  local cluster=() port i
  pids=()
  if ((processes > 1)); then
    port=$("$python" -c 'import socket; s = socket.create_server(("127.0.0.1", 0)); print(s.getsockname()[1])')
  fi
  for ((i = 0; i < processes; i++)); do
    if ((processes > 1)); then
      cluster=("--coordinator=127.0.0.1:$port" "--num_processes=$processes" "--process_id=$i")
    fi
    # In a group of its own (-m), a process does not get the terminal's Ctrl-C beside the signal that is passed on: a
    # second signal means "at once", and would cost the save. Should this script be killed, the kernel signals it.
    set -m
    "$python" -P "$repository/spectran_jax/studies/launch.py" $$ "" \
      "$python" -m experiments.train "$@" ${cluster[@]+"${cluster[@]}"} </dev/null &
    set +m
    pids+=($!)
  done
  if [[ -n $stopping ]]; then
    send TERM # it came while they were being started
  fi
}

left_with=() # the status of each process, empty while it runs

watch() { # Returns once every process has left; sees to it that none stays behind.
  local i status running killing=''
  left_with=()
  deadline=${stopping:+$((SECONDS + grace))}
  for ((i = 0; i < processes; i++)); do left_with[i]=''; done
  while :; do
    running=" $(jobs -rp | tr '\n' ' ')"
    for ((i = 0; i < processes; i++)); do
      if [[ -z ${left_with[i]} && $running != *" ${pids[i]} "* ]]; then
        status=0
        wait "${pids[i]}" || status=$?
        left_with[i]=$status
        if ((status != 0 && processes > 1)) && [[ -z $deadline ]]; then
          deadline=$((SECONDS + grace))
          echo "launch/local.sh: process $i left with $status; the others have $grace s to leave" >&2
        fi
      fi
    done
    [[ $running == " " ]] && return
    if [[ -n $deadline ]] && ((SECONDS >= deadline)); then
      if [[ -z $killing ]]; then
        send TERM
        killing=1 deadline=$((SECONDS + 30))
      else
        send KILL
      fi
    fi
    sleep 0.1 || true
  done
}

outcome() { # The run's status out of those of its processes.
  local status worst=0 killed=0
  for status in "${left_with[@]}"; do
    if [[ -n $stopping && $status == 143 ]]; then
      status=75 # stopped before it could tell: nothing is lost that starting again does not bring back
    fi
    case $status in
      0) ;;
      2) worst=2 ;;
      75) ((worst == 0)) && worst=75 ;;
      *)
        if ((status > 128)); then
          killed=1
        elif ((worst != 2)); then
          worst=1
        fi
        ;;
    esac
  done
  # Where one was killed, what the others say counts: they noticed, and leave with 75.
  echo "$((worst == 0 && killed ? 1 : worst))"
}

for ((left = restarts; ; left--)); do
  start "$@"
  watch
  status=$(outcome)
  if [[ $status != 75 || $left -le 0 || -n $stopping ]]; then
    exit "$status"
  fi
  echo "launch/local.sh: saved; starting again ($left left)" >&2
done
