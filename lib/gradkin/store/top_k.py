"""The best rows of a stream of shards: exact, compiled once, in memory that does not grow with it.

Every device holds an equal slice of a shard, scores it, and keeps the best rows of its slices; the
bests of all devices and processes are put together at the end.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from gradkin.typing import Array

AXIS = "rows"
# Codes that are not float32 become so a tile at a time, in a processor's cache.
TILE_BYTES = 2**20
NOWHERE = np.iinfo(np.int32).max


class TopK(NamedTuple):
    """The best examples for each query, best first; among equals the lowest number first.

    Attributes:
      scores: ``[Q, k]`` float32; ``[k]`` where the queries were reduced.
      indices: of the same shape, int64: numbers of examples.
    """

    scores: np.ndarray
    indices: np.ndarray


class Best(NamedTuple):
    """The best rows so far; every leaf has a leading axis of devices.

    Attributes:
      scores: ``[D, Q, k]``; ``-inf`` where there are none yet.
      shards: their shards.
      rows: their rows within the shards.
      finite: ``[D]``; whether every score was.
    """

    scores: Any
    shards: Any
    rows: Any
    finite: Any


def local_mesh(mesh: Mesh | None) -> tuple[Mesh, int, int]:
    """This process's devices along one axis; its place among the processes, and their number.

    Raises:
      ValueError: the mesh has devices of several processes, but not of all.
    """
    if mesh is None:
        return one_axis(jax.local_devices()[:1]), 0, 1
    devices = list(mesh.devices.flat)
    processes = sorted({device.process_index for device in devices})
    own = jax.process_index()
    if own not in processes or len(processes) not in (1, jax.process_count()):
        raise ValueError(
            f"Expected a mesh of this process's devices, or of all {jax.process_count()} "
            f"processes', got devices of {processes} in process {own}."
        )
    local = [device for device in devices if device.process_index == own]
    return one_axis(local), processes.index(own), len(processes)


def one_axis(devices: list[Any]) -> Mesh:
    return Mesh(np.array(devices), (AXIS,), axis_types=(AxisType.Auto,))


def start(mesh: Mesh, num_queries: int, k: int) -> Best:
    """Nothing yet."""
    shape = (mesh.size, num_queries, k)
    nothing = Best(
        np.full(shape, -np.inf, np.float32),
        np.full(shape, NOWHERE, np.int32),
        np.full(shape, NOWHERE, np.int32),
        np.ones(mesh.size, bool),
    )
    return jax.device_put(nothing, NamedSharding(mesh, P(AXIS)))


def place(mesh: Mesh, rows: Any) -> Any:
    """Rows of a shard, an equal slice to each device; a processor reads them where they lie."""
    return jax.device_put(rows, NamedSharding(mesh, P(AXIS)))


@functools.partial(jax.jit, static_argnames=("mesh", "largest"))
def update(
    best: Best,
    queries: Array,
    shard: Array,
    codes: tuple[Array, ...],
    factors: tuple[Array, ...],
    keep: Array,
    *,
    mesh: Mesh,
    largest: bool,
) -> Best:
    """The best rows after one more shard.

    Args:
      best: so far.
      queries: ``[C, Q, dim]``.
      shard: its number.
      codes: of each checkpoint, ``[R, dim]``.
      factors: of each checkpoint, ``[R]``.
      keep: ``[R]``, False for rows that are not there or left out.
      mesh: devices; ``R`` is a multiple of their number.
      largest: a row's score is the largest over the queries.
    """

    def local(best, queries, shard, codes, factors, keep):
        # Not a product with the mask: what lies in a row that is not there may be NaN.
        parts = (products(q, c) * jnp.expand_dims(f, 0) for q, c, f in zip(queries, codes, factors))
        scores = functools.reduce(jnp.add, parts)
        if largest:
            scores = jnp.max(scores, axis=0, keepdims=True)
        kept = jnp.broadcast_to(jnp.expand_dims(keep, 0), scores.shape)
        finite = jnp.all(jnp.isfinite(scores) | ~kept)
        scores = jnp.where(scores == 0, jnp.zeros_like(scores), scores)  # -0 ties with 0
        scores = jnp.where(kept, scores, -jnp.inf)
        num_rows, k = scores.shape[1], best.scores.shape[2]
        values, rows = lax.top_k(scores, min(k, num_rows))
        rows = rows + lax.axis_index(AXIS) * num_rows
        # `top_k` prefers what comes first among equals: earlier shards, then earlier rows.
        values = jnp.concatenate([best.scores[0], values], axis=1)
        shards = jnp.concatenate([best.shards[0], jnp.full_like(rows, shard)], axis=1)
        rows = jnp.concatenate([best.rows[0], rows], axis=1)
        values, order = lax.top_k(values, k)
        take = lambda x: jnp.expand_dims(jnp.take_along_axis(x, order, axis=1), 0)
        finite = best.finite & jnp.expand_dims(finite, 0)
        return Best(jnp.expand_dims(values, 0), take(shards), take(rows), finite)

    split, whole = P(AXIS), P()
    return jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(split, whole, whole, split, split, split),
        out_specs=split,
    )(best, queries, shard, codes, factors, keep)


def products(queries: Array, codes: Array) -> Array:
    """``[Q, R]`` inner products in float32."""

    def dot(codes: Array) -> Array:
        return lax.dot_general(
            queries,
            widened(codes),
            (((1,), (1,)), ((), ())),
            precision=lax.Precision.HIGHEST,
        )

    num_rows, dim = codes.shape
    tile = max(8, TILE_BYTES // (4 * dim))
    count = num_rows // tile
    if codes.dtype == queries.dtype or count < 2:
        return dot(codes)
    tiles = lax.map(dot, codes[: count * tile].reshape(count, tile, dim))
    whole = jnp.swapaxes(tiles, 0, 1).reshape(queries.shape[0], count * tile)
    rest = codes[count * tile :]
    return jnp.concatenate([whole, dot(rest)], axis=1) if rest.shape[0] else whole


def widened(codes: Array) -> Array:
    """Codes as float32."""
    if codes.dtype == jnp.bfloat16:
        # They are the upper halves of float32; on a processor this is seven times as fast.
        halves = lax.bitcast_convert_type(codes, jnp.uint16).astype(jnp.uint32)
        return lax.bitcast_convert_type(halves << np.uint32(16), jnp.float32)
    return codes.astype(jnp.float32)


def agree(succeeded: bool, processes: int) -> None:
    """Have a failure of one process stop all, which would wait for it otherwise.

    Raises:
      RuntimeError: this process succeeded and another did not.
    """
    if processes > 1:
        flags = np.ravel(multihost_utils.process_allgather(np.asarray([succeeded])))
        if succeeded and not flags.all():
            raise RuntimeError(f"Process {int(np.argmin(flags))} failed, and has said why.")


def finish(best: Best, k: int, shard_size: int, processes: int) -> TopK:
    """Put together what the devices, and the processes, have found.

    Args:
      best: of this process.
      k: how many.
      shard_size: examples of a shard.
      processes: how many take part.

    Raises:
      ValueError: a score is not finite.
    """
    found = Best(*map(np.asarray, best))
    if processes > 1:
        gathered = multihost_utils.process_allgather(found)
        found = Best(*(np.asarray(x).reshape((-1, *x.shape[2:])) for x in gathered))
    if not found.finite.all():
        raise ValueError(
            "Expected finite scores: products of queries and rows overflow float32. Scale the "
            "queries, or use metric='cosine'."
        )
    join = lambda x: np.swapaxes(x, 0, 1).reshape(x.shape[1], -1)
    scores, shards, rows = (join(x) for x in found[:3])
    numbers = shards.astype(np.int64) * shard_size + rows
    order = np.lexsort((numbers, -scores), axis=1)[:, :k]
    return TopK(np.take_along_axis(scores, order, 1), np.take_along_axis(numbers, order, 1))
