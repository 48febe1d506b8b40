#!/usr/bin/env bash
# What each machine of a TPU slice does: installs the project once, mounts the bucket with the
# data, trains. Goes to it behind lines that set REPOSITORY, WORKDIR, DATA_BUCKET and FLAGS.
set -euo pipefail
export HOME=${HOME:-/root}
cd "$HOME"
exec 9>/tmp/mtp_jax.lock
flock 9 # what an earlier start left running goes first
if ! [[ -x mtp_jax/.venv/bin/python ]]; then
    rm -rf mtp_jax
    git clone --quiet "$REPOSITORY" mtp_jax
    curl -LsSf https://astral.sh/uv/install.sh | sh
    cd mtp_jax
    "$HOME/.local/bin/uv" venv --quiet --python 3.12
    "$HOME/.local/bin/uv" pip install --quiet -r requirements.txt gcsfs "jax[tpu]"
    cd ..
fi
if [[ -n ${DATA_BUCKET:-} ]] && ! mountpoint --quiet /data; then
    if ! command -v gcsfuse >/dev/null; then
        repo="https://packages.cloud.google.com/apt"
        curl -sS "$repo/doc/apt-key.gpg" | sudo tee /usr/share/keyrings/gcsfuse.asc >/dev/null
        echo "deb [signed-by=/usr/share/keyrings/gcsfuse.asc] $repo gcsfuse-$(lsb_release -cs) main" |
            sudo tee /etc/apt/sources.list.d/gcsfuse.list >/dev/null
        sudo apt-get -qq update
        sudo apt-get -qq install -y gcsfuse
    fi
    sudo mkdir -p /data
    sudo chown "$(id -u)" /data
    gcsfuse --implicit-dirs -o ro "$DATA_BUCKET" /data
fi
cd mtp_jax
eval "flags=($FLAGS)"
# shellcheck disable=SC2154  # flags comes from FLAGS
PATH=$PWD/.venv/bin:$PATH MTP_COORDINATOR=auto launch/restart.sh \
    python -m mtp_jax.train "--workdir=$WORKDIR" "${flags[@]}"
