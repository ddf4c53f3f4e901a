"""What every test runs under: eight virtual CPU devices, strict ranks, strict dtypes."""

import contextlib
import gc
import importlib.metadata
import itertools
import os
import zlib
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# The suite compiles far more than it computes: without LLVM's optimisation passes, and with XLA's
# older emitters of fused operations, it takes about a third as long. XLA refuses flags that it does
# not know, so the second is for versions that do. `XLA_FLAGS= make test` compiles as users do.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0"
    + (
        " --xla_cpu_use_fusion_emitters=false"
        if importlib.metadata.version("jaxlib").startswith("0.10.")
        else ""
    ),
)
# scikit-learn's threads wait for one another where each core runs a test already.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import hypothesis
import jax
import jaxtyping
import pytest

# Before the first device query, so that no test sees another number of devices.
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")

# From here on every call of the library checks its jaxtyping annotations.
jaxtyping.install_import_hook("gradkin", "beartype.beartype")

# Tracing makes many objects that live on: looking for cycles among them as often as Python does by
# default takes a tenth of the time.
gc.set_threshold(50_000)

hypothesis.settings.register_profile("gradkin", deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("gradkin")


# Compiled programs are mapped into memory, and Linux allows a process 65,530 maps: XLA crashes
# where there are no more. So many programs also take about four gigabytes.
MOST_MAPS = 25_000
tests_run = itertools.count(1)


def pytest_runtest_teardown():
    """Forget compiled programs, now and then, before there are too many."""
    maps = Path("/proc/self/maps")
    if next(tests_run) % 20 == 0 and maps.exists() and maps.read_bytes().count(b"\n") > MOST_MAPS:
        jax.clear_caches()
        gc.collect()


raises: Any = pytest.raises


@contextlib.contextmanager
def raises_as_users_see_it(*arguments, **keywords):
    """`pytest.raises` with those checks off: the error must be the library's own."""
    with raises(*arguments, **keywords) as info:
        jaxtyping.config.update("jaxtyping_disable", True)
        try:
            yield info
        finally:
            jaxtyping.config.update("jaxtyping_disable", False)


pytest.raises = raises_as_users_see_it


@pytest.fixture
def key(request) -> jax.Array:
    """A PRNG key of the test's own: a stable hash of its id."""
    return jax.random.key(zlib.crc32(request.node.nodeid.encode()))


@pytest.fixture(scope="session")
def mesh() -> jax.sharding.Mesh:
    """Eight devices along one axis named ``data``."""
    return jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
