"""What has to be settled before JAX starts: the platform, and where compiled programs are kept."""

from __future__ import annotations

import importlib.util
import logging
import os
import pkgutil
from pathlib import Path
from typing import Any

from mtp_jax.distributed.compiled_programs import remove_damaged

log = logging.getLogger("mtp_jax")

# Set on machines with TPUs, by whoever made them (Cloud TPU, GKE), or to insist on one.
_TPU_VARIABLES = (
    *("TPU_NAME", "TPU_WORKER_ID", "TPU_WORKER_HOSTNAMES", "TPU_ACCELERATOR_TYPE"),
    *("TPU_VISIBLE_CHIPS", "TPU_VISIBLE_DEVICES", "JAX_FORCE_TPU_INIT"),
)
_GOOGLE, _NETWORK_CARD = "0x1ae0", "0x0042"  # PCI vendor, and its device in virtual machines


def start(cache_dir: str | os.PathLike[str]) -> None:
    """Chooses JAX's platform if that needs help, and turns its persistent compilation cache on.

    What the user has set, by JAX's environment variables or ``jax.config``, is left alone. Nothing
    is run: the platform is used for the first time later.

    Args:
        cache_dir: ``config.data.cache_dir``; programs are kept in its folder ``compiled``.
    """
    import jax  # imported late: help and errors in flags come at once

    config: Any = jax.config

    if not config.jax_platforms and (platforms := _platforms()):
        config.update("jax_platforms", platforms)
    if config.jax_compilation_cache_dir is None:
        folder = Path(cache_dir).expanduser() / "compiled"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            remove_damaged(folder)
        except OSError as error:
            log.info("compiled programs are not kept: %s (%s)", folder, error.strerror)
        else:
            config.update("jax_compilation_cache_dir", str(folder))


def _platforms() -> str:
    """What JAX shall use where libtpu is installed and there is no TPU; empty leaves it to JAX.

    JAX would load libtpu to look for TPUs, which prints screens of errors in every process. It is
    installed without TPUs by who compiles for them.
    """
    if importlib.util.find_spec("libtpu") is None or _has_tpu():
        return ""
    plugins = importlib.util.find_spec("jax_plugins")
    places = plugins.submodule_search_locations if plugins else None
    names = [module.name for module in pkgutil.iter_modules(places)] if places else []
    if not names:
        return "cpu"
    has_gpu = any(Path(device).exists() for device in ("/dev/nvidiactl", "/dev/dxg"))
    if all("cuda" in name for name in names):
        return "cuda,cpu" if has_gpu else "cpu"
    return ""


def _has_tpu() -> bool:
    """Whether a TPU may be here, by what takes no time to look at."""
    if any(name in os.environ for name in _TPU_VARIABLES) or any(Path("/dev").glob("accel[0-9]*")):
        return True
    return any(map(_is_google_accelerator, Path("/sys/bus/pci/devices").glob("*")))


def _is_google_accelerator(device: Path) -> bool:
    try:
        vendor, kind = ((device / name).read_text().strip() for name in ("vendor", "device"))
    except OSError:
        return False
    return vendor == _GOOGLE and kind != _NETWORK_CARD
