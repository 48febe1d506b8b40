"""Where tests run, and what they share."""

import gc
import importlib.metadata
import importlib.util
import os
import sys
import tempfile

import pytest

# It is here to compile with, and would look for TPUs each time that JAX starts.
if importlib.util.find_spec("libtpu"):
    os.environ.setdefault("JAX_PLATFORMS", "cpu")

# What takes longest begins first, so that no worker is left with it when the others are done.
LONGEST = (
    "test_sharding",
    "test_training",
    "test_pretrained",
    "test_freezing",
    "test_ctc_vocabulary",
    "test_notebook",
    "test_whisper_ctc",
    "test_mwer",
    "test_speech_llm_heads",
    "test_llama",
    "test_processes",
    "test_prefix_beam",
    "test_decoder_functions",
    "test_new_tokens",
)

# LLVM does not optimize, and fusions go to it directly instead of through MLIR, which takes as long
# again as all the rest. XLA ends the process at a flag that it does not know.
QUICK_TO_COMPILE = "--xla_backend_optimization_level=0"
if importlib.metadata.version("jaxlib").startswith("0.10."):
    QUICK_TO_COMPILE += " --xla_cpu_use_fusion_emitters=false"


def pytest_collection_modifyitems(items):
    """Sorts them; those of a file stay together."""
    place = {name: n for n, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.stem, len(place)))


def pytest_configure(config):
    """Programs are compiled once for all workers and the processes that tests start.

    There are thousands and each runs a few times: no time is spent to make their code fast.
    """
    # Tracing makes many objects that stay; looking through all of them again and again takes long.
    gc.set_threshold(100_000, 50, 100)
    if not hasattr(config, "workerinput"):
        if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
            folder = tempfile.TemporaryDirectory(prefix="mtp_jax_compiled_")
            config.add_cleanup(folder.cleanup)
            os.environ["JAX_COMPILATION_CACHE_DIR"] = folder.name
        os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
        flags = os.environ.get("XLA_FLAGS", "")
        os.environ["XLA_FLAGS"] = f"{QUICK_TO_COMPILE} {flags}"


@pytest.fixture(scope="module", autouse=True)
def _programs_are_freed():
    """Behind each file: a program takes several memory maps, of which Linux allows 65,530.

    A worker that runs half of all tests would need more, and LLVM crashes where it gets none.
    """
    yield
    import jax

    jax.clear_caches()
    gc.collect()


@pytest.fixture(scope="session", autouse=True)
def _no_call_is_timed():
    """What a wide call costs is not measured here: `auto` makes the same calls each time."""
    from mtp_jax.inference import call_cost, pacing

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pacing, "RUNS_BEFORE", sys.maxsize)
        patch.setattr(call_cost.CallCosts, "_file", None)
        yield


@pytest.fixture(scope="module")
def _steps_are_shared():
    """Runs of a file that take the same steps trace and compile them once.

    What only says when a run logs, saves or decodes makes no other step.
    """
    from mtp_jax.training import loop
    from tests.shared_steps import shared

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "make_train_step", shared(loop.make_train_step))
        yield


# Imported late: importing JAX would read the environment before it is set.
@pytest.fixture(scope="session")
def workdir(tmp_path_factory):
    """Of a tiny model with random parameters; not to be written to."""
    from tests.models import tiny_workdir

    return tiny_workdir(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="session")
def model(workdir):
    """It, loaded."""
    import mtp_jax

    return mtp_jax.load(workdir, batch_size=4)


@pytest.fixture(scope="session")
def waves():
    """int16[T] of three sentences."""
    from tests.recordings import sentences

    return sentences(3)


@pytest.fixture(scope="session")
def talk(waves):
    """int16[T], longer than the model's longest piece."""
    import numpy as np

    from tests.recordings import RATE

    return np.concatenate([waves[0], np.zeros(RATE, np.int16), waves[1], waves[2]])


@pytest.fixture(scope="session")
def recordings(waves, talk):
    """All of these."""
    return [*waves, talk]


@pytest.fixture(scope="session")
def files(recordings):
    """FLAC files of them."""
    from tests.recordings import flac

    return [flac(wave) for wave in recordings]
