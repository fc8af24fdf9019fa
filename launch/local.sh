#!/usr/bin/env bash
# Trains on this machine: every accelerator there is, or DEVICES fake CPU devices to try a mesh out.
#
#   launch/local.sh --workdir=runs/local                          all devices, data-parallel
#   DEVICES=4 launch/local.sh --mesh=data:4 --workdir=runs/mesh   four fake devices on the CPU
#
# Exit status 75 means "saved, start me again"; this script does so, up to RESTARTS times (default 0).
set -euo pipefail
cd "$(dirname "$0")/.."

python=${PYTHON:-.venv/bin/python}
if [[ -n ${DEVICES:-} ]]; then
  export JAX_PLATFORMS=cpu XLA_FLAGS="${XLA_FLAGS:-} --xla_force_host_platform_device_count=$DEVICES"
fi

for ((left = ${RESTARTS:-0}; ; left--)); do
  status=0
  "$python" -m experiments.train "$@" || status=$?
  if ((status != 75 || left <= 0)); then
    exit "$status"
  fi
  echo "launch/local.sh: saved; starting again ($left left)" >&2
done
