#!/usr/bin/env bash
# Runs a command again for as long as starting it anew may help.
#
#     launch/restart.sh [--dry-run] COMMAND...
#
# It may where another process of the run is gone (75), or where the command was killed (128 and
# more). It does not after success (0), an error that would come again (1, 2), Ctrl-C, or where
# this script itself was told to stop (SIGTERM). Either signal reaches the command as SIGTERM, beside
# the SIGINT that a terminal sends to all: two of those would end it before it has saved.
# TRIES is how often at most (100), PAUSE the seconds in between (5).
# shellcheck source=launch/common.sh
source "$(dirname "$0")/common.sh" "$@"
[[ ${1:-} != --dry-run ]] || shift
(($#)) || fail "name a command"

if [[ -n $dry ]]; then
    run "$@"
    exit
fi
child="" stopping=""
stop() {
    stopping=$1
    [[ -z $child ]] || kill -TERM "$child" 2>/dev/null || true
}
trap 'stop 130' INT
trap 'stop 143' TERM
for ((try = 1; ; try++)); do
    [[ -z $stopping ]] || exit "$stopping"
    "$@" &
    child=$!
    [[ -z $stopping ]] || kill -TERM "$child" # it came before the trap knew the child
    status=0
    wait "$child" || status=$?
    while kill -0 "$child" 2>/dev/null; do # the trap ended the first wait
        wait "$child" && status=0 || status=$?
    done
    child=""
    case $status in
    0 | 1 | 2 | 130) exit "$status" ;;
    esac
    [[ -z $stopping ]] || exit "$status"
    if ((try >= ${TRIES:-100})); then
        echo "ended with status $status for the ${try}th time: giving up" >&2
        exit "$status"
    fi
    echo "ended with status $status: starting again in ${PAUSE:-5} s" >&2
    sleep "${PAUSE:-5}" &
    child=$! # which a signal ends, too
    wait "$child" || true
    child=""
done
