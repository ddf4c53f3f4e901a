"""Where the arrays of a run lie: one device, or a mesh whose axis ``data`` carries the examples."""

import contextlib
import re
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec


def make_mesh(spec: str, *, multihost: bool = False) -> Mesh:
    """Return the mesh of ``"data=N"``.

    Must come before anything asks jax for its devices: on a CPU it makes N of them. With several
    processes it cannot (set JAX_NUM_CPU_DEVICES in each), and N counts the devices of all.
    """
    match = re.fullmatch(r"data=([1-9]\d*)", spec)
    if match is None:
        raise ValueError(f"Expected mesh to be data=N, got mesh={spec!r}.")
    size = int(match[1])
    if not multihost:
        with contextlib.suppress(RuntimeError):  # too late: the devices are counted below
            jax.config.update("jax_num_cpu_devices", size)
    devices = jax.devices()
    if len(devices) < size:
        raise ValueError(f"Expected mesh to fit {len(devices)} devices, got mesh={spec!r}.")
    return Mesh(np.asarray(devices[:size]), ("data",), axis_types=(AxisType.Auto,))


def place(data: Any, mesh: Mesh | None) -> Any:
    """Put the data on the devices; a leading axis that the mesh divides is split over ``data``."""
    if mesh is None:
        return jax.tree.map(jax.numpy.asarray, data)

    def put(leaf):
        leaf = np.asarray(leaf)
        leaf = leaf.astype(jax.dtypes.canonicalize_dtype(leaf.dtype))
        split = leaf.ndim and leaf.shape[0] and leaf.shape[0] % mesh.size == 0
        sharding = NamedSharding(mesh, PartitionSpec("data" if split else None))
        return jax.make_array_from_callback(leaf.shape, sharding, lambda index: leaf[index])

    return jax.tree.map(put, data)


def replicated(mesh: Mesh | None) -> NamedSharding | None:
    """The sharding that has everything on every device of the mesh."""
    return None if mesh is None else NamedSharding(mesh, PartitionSpec())


def replicate(leaf: jax.Array, sharding: NamedSharding) -> jax.Array:
    """Put an array or key on every device of the mesh, also those of other processes."""
    if jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        data = replicate(jax.random.key_data(leaf), sharding)
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
    if not leaf.is_fully_addressable:
        return jax.jit(lambda x: x, out_shardings=sharding)(leaf)
    return jax.device_put(np.asarray(leaf), sharding)
