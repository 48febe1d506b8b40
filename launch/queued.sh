#!/usr/bin/env bash
# Trains on a TPU slice that is asked for as a queued resource, and asked for again if taken away.
#
#     NAME=... PROJECT=... ZONE=... ACCELERATOR=... RUNTIME=... REPOSITORY=... WORKDIR=gs://... \
#         [SPOT=1] [DATA_BUCKET=...] launch/queued.sh [--dry-run] --config=configs/FILE.py [FLAG...]
#
# The machines train from their start-up script, at every boot. Runs until results.json is in the
# workdir, then gives the slice back.
# shellcheck source=launch/common.sh
source "$(dirname "$0")/common.sh" "$@"
[[ ${1:-} != --dry-run ]] || shift
need NAME PROJECT ZONE ACCELERATOR RUNTIME REPOSITORY WORKDIR
here=$(dirname "$0")
script=$(mktemp)
trap 'rm -f "$script"' EXIT
{
    echo '#!/usr/bin/env bash'
    printf '%s=%q\n' REPOSITORY "$REPOSITORY" WORKDIR "$WORKDIR" \
        DATA_BUCKET "${DATA_BUCKET:-}" FLAGS "${*@Q}"
    cat "$here/worker.sh"
} >"$script"
[[ -z $dry ]] || script="(settings and $here/worker.sh with ${*@Q})"
queued() {
    run gcloud compute tpus queued-resources "$@" --project="$PROJECT" --zone="$ZONE"
}
create=(create "$NAME" --node-id="$NAME" --accelerator-type="$ACCELERATOR"
    --runtime-version="$RUNTIME" --metadata-from-file="startup-script=$script" ${SPOT:+--spot})

if [[ -n $dry ]]; then
    queued "${create[@]}"
    run gcloud storage ls "$WORKDIR/results.json"
    queued delete "$NAME" --force --quiet
    exit
fi
until gcloud storage ls "$WORKDIR/results.json" >/dev/null 2>&1; do
    state=$(queued describe "$NAME" --format='value(state.state)' 2>/dev/null || true)
    case $state in
    "") queued "${create[@]}" || true ;;
    SUSPENDED | FAILED) queued delete "$NAME" --force --quiet ;;
    esac
    sleep "${PAUSE:-60}"
done
queued delete "$NAME" --force --quiet
echo "finished: $WORKDIR"
