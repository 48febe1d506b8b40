"""A workdir on ``gs://``, of a bucket that this process pretends to be; run by test_bucket.py.

The paths, TensorBoard and TensorStore each have their own client of Google Cloud Storage: the
first two look at STORAGE_EMULATOR_HOST, the third at TENSORSTORE_GCS_HTTP_URL, before they start.
"""

from __future__ import annotations

import os
import socket
import sys
import traceback

from gcp_storage_emulator.server import create_server

with socket.socket() as free:
    free.bind(("localhost", 0))
    PORT = free.getsockname()[1]
os.environ |= {
    "STORAGE_EMULATOR_HOST": f"http://localhost:{PORT}",
    "TENSORSTORE_GCS_HTTP_URL": f"http://localhost:{PORT}",
    "TENSORSTORE_GOOGLE_AUTH_TEST_MODE": "1",
    "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
    "GOOGLE_CLOUD_PROJECT": "none",
    "NO_GCE_CHECK": "true",  # nor look for credentials where there are none
}

import jax
import jax.numpy as jnp
import numpy as np

from mtp_jax.checkpoints.checkpoint import Checkpoints
from mtp_jax.checkpoints.workdir import Workdir, WorkdirError, write_json
from mtp_jax.config import Config, Mesh
from mtp_jax.distributed.sharding import make_mesh, replicated
from mtp_jax.evaluation.scalars import read_scalars
from mtp_jax.tokenizer import Tokenizer
from mtp_jax.training.board import Board
from mtp_jax.training.step import TrainState

WORKDIR = "gs://speech/runs/one"


def main() -> None:
    workdir = Workdir(WORKDIR)
    workdir.claim(Config())
    workdir.claim(Config())
    try:
        workdir.claim(Config(seed=1))
    except WorkdirError as error:
        assert f"{WORKDIR} belongs to a run with another config (seed: 0 -> 1)" in str(error)
    else:
        raise AssertionError
    assert workdir.read_config() == Config()

    assert workdir.tokenizer is None
    texts = ["turn on the lamp", "turn off the radio"]
    made = Tokenizer.train(texts, workdir.path, 20)
    read = Tokenizer.load(workdir.tokenizer)
    assert read.encode(texts[0]) == made.encode(texts[0])

    everywhere = replicated(make_mesh(Mesh(), jax.devices()[:1]))
    shardings = TrainState(everywhere, {"w": everywhere}, {}, {}, {})

    def state(step: int) -> TrainState:
        params = {"w": jax.device_put(jnp.arange(6.0) * step, everywhere)}
        return TrainState(jax.device_put(np.int32(step), everywhere), params, {}, {}, {})

    with Checkpoints(workdir.path) as checkpoints:
        assert checkpoints.latest_step is None
        for step in (1, 2, 3):
            checkpoints.save(state(step))
            checkpoints.save_best(state(step), wer=(9.0, 4.0, 5.0)[step - 1])
        checkpoints.wait()
    with Checkpoints(workdir.path) as checkpoints:
        restored = checkpoints.restore(state(0), shardings)
        assert int(restored.step) == 3
        np.testing.assert_array_equal(restored.params["w"], np.arange(6.0) * 3)
        best = checkpoints.restore_best({"w": restored.params["w"]}, {"w": everywhere})
        np.testing.assert_array_equal(best["w"], np.arange(6.0) * 2)

    with Board(workdir.tensorboard, 0) as board:
        board.add_scalar("train/loss", 2.5, 7)
    assert read_scalars(workdir) == {"train/loss": {7: 2.5}}
    write_json(workdir.results, {"rows": []})
    assert workdir.results.read_text().startswith("{")
    print("all is in the bucket")


if __name__ == "__main__":
    create_server("localhost", PORT, in_memory=True, default_bucket="speech").start()
    status = 1
    try:
        main()
        status = 0
    except Exception:
        traceback.print_exc()
    sys.stdout.flush()
    os._exit(status)  # TensorBoard's writer would write once more, to a bucket that is gone
