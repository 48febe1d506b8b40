#!/usr/bin/env bash
# Runs a command again for as long as starting it anew may help.
#
#     launch/restart.sh [--dry-run] COMMAND...
#
# It may where another process of the run is gone (75), or where the command was killed (128 and
# more). It does not after success (0), an error that would come again (1, 2), Ctrl-C, or where
# this script itself was told to stop (SIGTERM), which it passes on.
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
trap 'stopping=1; [[ -z $child ]] || kill -TERM "$child"' TERM
for ((try = 1; ; try++)); do
    "$@" &
    child=$!
    status=0
    wait "$child" || status=$?
    while kill -0 "$child" 2>/dev/null; do # the trap ended the first wait
        wait "$child" && status=0 || status=$?
    done
    case $status in
    0 | 1 | 2 | 130) exit "$status" ;;
    esac
    [[ -z $stopping ]] || exit "$status"
    if ((try >= ${TRIES:-100})); then
        echo "ended with status $status for the ${try}th time: giving up" >&2
        exit "$status"
    fi
    echo "ended with status $status: starting again in ${PAUSE:-5} s" >&2
    sleep "${PAUSE:-5}"
done
