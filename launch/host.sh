#!/usr/bin/env bash
# Trains on this machine with all its devices; killed by the system, it goes on by itself.
#
#     launch/host.sh [--dry-run] --config=configs/mtp.py [FLAG...]
# shellcheck source=launch/common.sh
source "$(dirname "$0")/common.sh" "$@"
[[ ${1:-} != --dry-run ]] || shift
run "$(dirname "$0")/restart.sh" "${PYTHON:-python}" -m mtp_jax.train "$@"
