"""Where tests run, and what they share."""

import importlib.util
import os
import tempfile

# It is here to compile with, and would look for TPUs each time that JAX starts.
if importlib.util.find_spec("libtpu"):
    os.environ.setdefault("JAX_PLATFORMS", "cpu")

# What takes longest begins first, so that no worker is left with it when the others are done.
LONGEST = ("test_sharding", "test_training", "test_ctc_vocabulary", "test_pretrained", "test_mwer")


def pytest_collection_modifyitems(items):
    """Sorts them; those of a file stay together."""
    place = {name: n for n, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.stem, len(place)))


def pytest_configure(config):
    """Programs are compiled once for all workers and the processes that tests start.

    There are thousands and each runs a few times: no time is spent to make their code fast.
    """
    if not hasattr(config, "workerinput"):
        folder = tempfile.TemporaryDirectory(prefix="mtp_jax_compiled_")
        config.add_cleanup(folder.cleanup)
        os.environ["JAX_COMPILATION_CACHE_DIR"] = folder.name
        os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
        flags = os.environ.get("XLA_FLAGS", "")
        os.environ["XLA_FLAGS"] = f"--xla_backend_optimization_level=0 {flags}"
