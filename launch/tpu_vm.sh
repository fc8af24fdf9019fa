#!/usr/bin/env bash
# Trains on Cloud TPU VMs: queues for a slice, starts the same container on all of its workers, and where the slice is
# preempted queues for another and goes on. JAX learns who is who from the VMs' metadata, so no flag says it.
#
#   export ZONE=us-west4-a TPU=v5litepod-16 RUNTIME=v2-alpha-tpuv5-lite
#   export IMAGE=us-docker.pkg.dev/my-project/spectran/spectran:tpu NFS=10.0.0.2:/spectran
#   launch/tpu_vm.sh --workdir=/mnt/spectran/runs/first --data_dir=/mnt/spectran/cache ...
#
# What to change, all of it in the environment:
#   ZONE, PROJECT     where; PROJECT is gcloud's own where it is empty
#   TPU, RUNTIME      the slice and its software: v5litepod-16 with v2-alpha-tpuv5-lite, v5p-32 with v2-alpha-tpuv5,
#                     v6e-16 with v2-alpha-tpuv6e (gcloud compute tpus accelerator-types list --zone=ZONE)
#   IMAGE             the image of launch/Dockerfile, target tpu, in a registry that the VMs' service account may read
#   NFS, MOUNT        a Filestore share, HOST:/NAME, in the VMs' network, and where it is mounted (/mnt/spectran);
#                     --workdir and --data_dir must lie under it, so that all workers see the same files
#   NAME              of the queued resource and the container (spectran)
#   SLICES            how many slices, joined by the data centre's network (1)
#   SPOT              1 asks for spot capacity, which is cheaper and may be taken away; 0 for on-demand (1)
#   RESTARTS          how often to start again: after 75, after a preemption, after a lost connection (100)
#   KEEP              1 leaves the slice in place at the end. It costs money until it is deleted (0)
#   POLL              seconds between two looks at the queue (30)
#
# This script waits here while the containers run there: interrupt it, or lose the connection, and they go on; the same
# command attaches to them again. To stop the run for good, see launch/README.md.
# Exit status, that of the run: 0 done, 2 bad input or NAME is another command's, 75 saved but RESTARTS used up, 1 any
# other failure.
set -euo pipefail

for variable in ZONE TPU RUNTIME IMAGE NFS; do
  if [[ -z ${!variable:-} ]]; then
    echo "launch/tpu_vm.sh: set $variable; the head of this script says what it is." >&2
    exit 2
  fi
done
mount=${MOUNT:-/mnt/spectran} name=${NAME:-spectran} slices=${SLICES:-1} restarts=${RESTARTS:-100} poll=${POLL:-30}

tell() { echo "launch/tpu_vm.sh: $*" >&2; }

queue() { # COMMAND FLAGS: a gcloud command about queued resources
  gcloud compute tpus queued-resources "$@" --zone="$ZONE" ${PROJECT:+"--project=$PROJECT"} --quiet
}

state() { # of the queued resource; NONE where there is none, UNKNOWN where that can't be told now
  local answer
  if answer=$(queue describe "$name" --format='value(state.state)' 2>&1); then
    echo "${answer##*$'\n'}"
  elif [[ ${answer,,} == *not_found* || ${answer,,} == *"not found"* ]]; then
    echo NONE
  else
    echo UNKNOWN
  fi
}

create() {
  local nodes=("--node-id=$name")
  if ((slices > 1)); then
    nodes=("--node-count=$slices" "--node-prefix=$name")
  fi
  if [[ ${SPOT:-1} == 1 ]]; then
    nodes+=(--spot)
  fi
  queue create "$name" "--accelerator-type=$TPU" "--runtime-version=$RUNTIME" "${nodes[@]}"
}

workers() { # COMMAND: on every worker at once (in batches, the first would wait for the rest for ever)
  queue ssh "$name" --node=all --worker=all --batch-size=all --command="$1"
}

refuse() { # gcloud may be out of reach for a moment; what it refuses again and again is an error
  refused=$((refused + 1))
  if ((refused >= 5)); then
    tell "gcloud failed $refused times, see above; the same command tries again"
    exit 1
  fi
  sleep "$poll"
}

acquire() { # Returns once the slice is there.
  local now before='' asked='' refused=0
  while :; do
    now=$(state)
    [[ $now == "$before" ]] || tell "$name is $now"
    before=$now
    case $now in
      ACTIVE) return ;;
      NONE)
        if create; then
          asked=1 refused=0
        else
          refuse
        fi
        ;;
      FAILED | SUSPENDED)
        if [[ $now == FAILED && -n $asked ]]; then
          tell "the request failed: gcloud compute tpus queued-resources describe $name --zone=$ZONE says why"
          exit 1
        fi
        if queue delete "$name" --force; then
          refused=0
        else
          refuse
        fi
        ;;
      *) sleep "$poll" ;;
    esac
  done
}

finish() { # STATUS
  workers "sudo docker rm --force $name" >/dev/null 2>&1 || true
  if [[ ${KEEP:-0} == 1 ]]; then
    tell "$name stays, and costs money: gcloud compute tpus queued-resources delete $name --force --zone=$ZONE"
  else
    queue delete "$name" --force || tell "could not delete $name: do it, for it costs money"
  fi
  exit "$1"
}

# A worker that is asked twice attaches to the container that it has: gcloud asks again when a connection breaks.
flags=''
if (($# > 0)); then
  flags=$(printf ' %q' "$@")
fi
made=$(printf '%s' "$IMAGE$flags" | sha256sum | cut -c 1-16)
start="set -eu
command -v mount.nfs >/dev/null || { sudo apt-get -qq update && sudo apt-get -qq install -y nfs-common; }
sudo mkdir -p $mount
mountpoint -q $mount || sudo mount -t nfs $NFS $mount
if found=\$(sudo docker inspect --format '{{.State.Running}} {{index .Config.Labels \"made\"}}' $name 2>/dev/null); then
  case \"\$found\" in
    *' $made') ;;
    true*) exit 78 ;;
    *) sudo docker rm $name >/dev/null; found='' ;;
  esac
fi
if [ -z \"\$found\" ]; then
  sudo gcloud auth configure-docker ${IMAGE%%/*} --quiet
  sudo docker run --detach --name $name --label made=$made --privileged --net=host --stop-timeout 60 \
    --volume $mount:$mount $IMAGE --coordinator_timeout=1800$flags >/dev/null
fi
sudo docker logs --follow --tail 100 $name &
status=\$(sudo docker wait $name)
wait
exit \$status"

trap 'tell "the run goes on without this script; the same command attaches to it again"; exit 130' INT TERM
for ((left = restarts; ; left--)); do
  acquire
  status=0
  workers "$start" || status=$?
  now=ACTIVE
  if [[ $status != 0 && $status != 2 && $status != 75 && $status != 78 ]]; then
    sleep "$poll" # a preemption takes a moment to show
    now=$(state)
  fi
  case $status:$now in
    0:* | 2:*) finish "$status" ;;
    78:*)
      tell "$name is at work for another image or other flags, and costs money: give that command to attach to it," \
        "stop it (launch/README.md), or set another NAME"
      exit 2
      ;;
    75:*) why="saved, or lost a worker" ;;
    134:ACTIVE | 135:ACTIVE | 137:ACTIVE | 139:ACTIVE) why="lost a container (a signal ended it)" ;;
    255:ACTIVE | *:UNKNOWN) why="lost the connection" ;;
    *:ACTIVE)
      tell "failed with $status"
      finish 1
      ;;
    *) why="$name is $now: preempted" ;;
  esac
  if ((left <= 0)); then
    tell "$why; RESTARTS is used up"
    finish "$((status == 75 ? 75 : 1))"
  fi
  tell "$why; going on ($left left)"
  if [[ $status == 75 || ($status == 13[4579] && $now == ACTIVE) ]]; then
    workers "sudo docker rm --force $name" >/dev/null || true
  fi
done
