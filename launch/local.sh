#!/usr/bin/env bash
# Trains with several processes on this machine, which go on by themselves if one is killed.
#
#     launch/local.sh [--dry-run] 4 --config=configs/mtp.py [FLAG...]
#
# PORT is that of the coordinator (7733).
# shellcheck source=launch/common.sh
source "$(dirname "$0")/common.sh" "$@"
[[ ${1:-} != --dry-run ]] || shift
count=${1:-}
[[ $count =~ ^[1-9][0-9]*$ ]] || fail "say how many processes: launch/local.sh 4 --config=FILE"
shift

children=()
trap '((!${#children[@]})) || kill -TERM "${children[@]}" 2>/dev/null || true' EXIT TERM INT
for ((i = 0; i < count; i++)); do
    command=(
        env "MTP_COORDINATOR=localhost:${PORT:-7733}" "MTP_PROCESSES=$count" "MTP_PROCESS_ID=$i"
        "$(dirname "$0")/restart.sh" "${PYTHON:-python}" -m mtp_jax.train "$@"
    )
    if [[ -n $dry ]]; then
        run "${command[@]}"
    else
        "${command[@]}" &
        children+=("$!")
    fi
done
status=0
for child in "${children[@]}"; do
    wait "$child" || status=$?
done
exit "$status"
