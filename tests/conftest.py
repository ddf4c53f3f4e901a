"""What every test runs under: eight virtual CPU devices, strict ranks, strict dtypes."""

import os
import zlib

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import hypothesis
import jax
import pytest
from jaxtyping import install_import_hook

# Before the first device query, so that no test sees another number of devices.
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")

# From here on every call of the library checks its jaxtyping annotations.
install_import_hook("gradkin", "beartype.beartype")

hypothesis.settings.register_profile("gradkin", deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("gradkin")


@pytest.fixture
def key(request) -> jax.Array:
    """A PRNG key of the test's own: a stable hash of its id."""
    return jax.random.key(zlib.crc32(request.node.nodeid.encode()))


@pytest.fixture(scope="session")
def mesh() -> jax.sharding.Mesh:
    """Eight devices along one axis named ``data``."""
    return jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
