#!/usr/bin/env bash
# Trains on a TPU slice, all its machines; made anew and gone on with whenever it is taken away.
#
#     NAME=... PROJECT=... ZONE=... ACCELERATOR=... RUNTIME=... REPOSITORY=... WORKDIR=gs://... \
#         [SPOT=1] [DATA_BUCKET=...] launch/tpu_vm.sh [--dry-run] --config=configs/FILE.py [FLAG...]
#
# Runs until results.json is in the workdir. The slice stays: delete it by
# gcloud compute tpus tpu-vm delete NAME.
# shellcheck source=launch/common.sh
source "$(dirname "$0")/common.sh" "$@"
[[ ${1:-} != --dry-run ]] || shift
need NAME PROJECT ZONE ACCELERATOR RUNTIME REPOSITORY WORKDIR
here=$(dirname "$0")
tpu() { run gcloud compute tpus tpu-vm "$@" --project="$PROJECT" --zone="$ZONE"; }
create=(create "$NAME" --accelerator-type="$ACCELERATOR" --version="$RUNTIME" ${SPOT:+--spot})
job=$(printf '%s=%q\n' REPOSITORY "$REPOSITORY" WORKDIR "$WORKDIR" \
    DATA_BUCKET "${DATA_BUCKET:-}" FLAGS "${*@Q}" && cat "$here/worker.sh")
start=(ssh "$NAME" --worker=all --command="bash -c $(printf %q "$job")")

if [[ -n $dry ]]; then
    tpu "${create[@]}"
    start[3]="--command=(settings and $here/worker.sh with ${*@Q})"
    tpu "${start[@]}"
    run gcloud storage ls "$WORKDIR/results.json"
    exit
fi
short=0
until gcloud storage ls "$WORKDIR/results.json" >/dev/null 2>&1; do
    state=$(tpu describe "$NAME" --format='value(state)' 2>/dev/null || true)
    case $state in
    READY)
        began=$SECONDS
        tpu "${start[@]}" || ((SECONDS - began > 300)) || ((++short < 3)) ||
            fail "three starts in a row ended within minutes: see what they said above"
        ;;
    "") tpu "${create[@]}" || true ;;
    PREEMPTED | TERMINATED | STOPPED) tpu delete "$NAME" --quiet ;;
    esac
    gcloud storage ls "$WORKDIR/results.json" >/dev/null 2>&1 || sleep "${PAUSE:-60}"
done
echo "finished: $WORKDIR"
