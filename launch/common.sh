# What the scripts of this folder share; sourced by them.
# shellcheck shell=bash
set -euo pipefail

dry=""
if [[ ${1:-} == --dry-run ]]; then
    dry=1
    shift
fi

fail() {
    echo "error: $1" >&2
    exit 2
}

# Runs a command, or with --dry-run prints it, quoted so that a shell would take it.
run() {
    if [[ -n $dry ]]; then
        printf '%q ' "$@" | sed 's/ $//'
        echo
    else
        "$@"
    fi
}

need() {
    local name
    for name in "$@"; do
        [[ -n ${!name:-} ]] || fail "set $name, such as: $name=${examples[$name]}"
    done
}

# shellcheck disable=SC2034  # used by need
declare -A examples=(
    [NAME]=speech
    [PROJECT]=my-project
    [ZONE]=europe-west4-b
    [ACCELERATOR]=v5litepod-16
    [RUNTIME]=v2-alpha-tpuv5-lite
    [REPOSITORY]=https://github.com/OWNER/mtp_jax
    [WORKDIR]=gs://my-bucket/runs/one
    [IMAGE]=europe-docker.pkg.dev/my-project/speech/mtp_jax
    [TPU]=tpu-v5-lite-podslice
    [TOPOLOGY]=4x4
    [HOSTS]=4
)
