"""Where tests run."""

import importlib.util
import os

# It is here to compile with, and would look for TPUs each time that JAX starts.
if importlib.util.find_spec("libtpu"):
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
