"""From queries to the best examples: what is asked for, and the pass over the shards."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from gradkin.store import rows, streams, top_k
from gradkin.store.layout import Spec
from gradkin.store.manifest import Entry
from gradkin.store.progress import shown
from gradkin.store.top_k import TopK

METRICS = ("dot", "cosine", "normalized")


def prepare_queries(
    queries: Any, spec: Spec, checkpoints: int, weights: Sequence[float] | None, metric: str
) -> np.ndarray:
    """``[C, Q, dim]`` float32, times the weights, for `cosine` divided by their norms.

    Raises:
      ValueError: shapes that do not fit, no queries, values that are not finite.
      TypeError: queries not of a floating dtype.
    """
    array = np.asarray(queries)
    if array.ndim == 2 and checkpoints == 1:
        array = array[None]
    if array.ndim != 3 or array.shape[0] != checkpoints or not array.shape[1]:
        wanted = "[Q, dim]" if checkpoints == 1 else f"[{checkpoints}, Q, dim]"
        raise ValueError(f"Expected queries of shape {wanted}, Q >= 1, got {np.shape(queries)}.")
    array = np.stack([rows.as_rows(q, spec.dim, name="queries") for q in array])
    if not np.isfinite(array).all():
        raise ValueError("Expected finite queries, got NaN or infinity.")
    factors = np.ones(checkpoints) if weights is None else np.asarray(weights, np.float64)
    if factors.shape != (checkpoints,) or not np.isfinite(factors).all():
        raise ValueError(f"Expected {checkpoints} finite weights, got {weights}.")
    scaled = array.astype(np.float64) * factors[:, None, None]
    if metric == "cosine":
        norms = np.linalg.norm(array.astype(np.float64), axis=2, keepdims=True)
        large = norms > rows.LEAST_NORM
        scaled = np.divide(scaled, norms, out=np.zeros_like(scaled), where=large)
    return scaled.astype(np.float32)


def prepare_mask(mask: Any, total: int) -> np.ndarray | None:
    """The mask as NumPy.

    Raises:
      ValueError: another shape or dtype, or it keeps nothing.
    """
    if mask is None:
        return None
    array = np.asarray(mask)
    if array.dtype != np.bool_ or array.shape != (total,):
        raise ValueError(
            f"Expected mask of shape ({total},) and dtype bool, got {array.shape} {array.dtype}."
        )
    if not array.any():
        raise ValueError("Expected mask to keep an example, got one that leaves all out.")
    return array


def best_examples(
    store: Path,
    spec: Spec,
    plan: dict[int, list[list[Entry]]],
    queries: np.ndarray,
    k: int,
    *,
    metric: str,
    largest_of_queries: bool,
    keep: np.ndarray | None,
    mesh: Mesh | None,
    progress: bool,
) -> TopK:
    """Read the shards once; see `GradientStore.top_k`.

    Args:
      store: folder of the store.
      spec: its properties.
      plan: shard -> for each checkpoint the parts of it.
      queries: of `prepare_queries`.
      k: how many.
      metric: one of `METRICS`.
      largest_of_queries: reduce the scores over the queries.
      keep: of `prepare_mask`.
      mesh: devices.
      progress: show a progress bar.
    """
    local, own, processes = top_k.local_mesh(mesh)
    share = {s: plan[s] for place, s in enumerate(plan) if place % processes == own}
    try:
        best = scan(
            store,
            spec,
            share,
            queries,
            k,
            local,
            metric=metric,
            largest=largest_of_queries,
            keep=keep,
            progress=progress,
        )
    except Exception:
        top_k.agree(False, processes)
        raise
    top_k.agree(True, processes)
    found = top_k.finish(best, k, spec.shard_size, processes)
    return TopK(found.scores[0], found.indices[0]) if largest_of_queries else found


def scan(
    store: Path,
    spec: Spec,
    plan: dict[int, list[list[Entry]]],
    queries: np.ndarray,
    k: int,
    mesh: Mesh,
    *,
    metric: str,
    largest: bool,
    keep: np.ndarray | None,
    progress: bool,
) -> top_k.Best:
    """The best rows of this process's shards, on its devices."""
    size = spec.shard_size
    longest = max((parts[0][-1].stop - shard * size for shard, parts in plan.items()), default=1)
    num_rows = -(-longest // mesh.size) * mesh.size
    best = top_k.start(mesh, 1 if largest else queries.shape[1], k)
    on_devices = jax.device_put(queries, NamedSharding(mesh, PartitionSpec()))
    loaded = streams.stream(store, spec, plan, num_rows=num_rows)
    for shard, count, buffer in shown(loaded, progress, "top-k", total=len(plan)):
        there = np.zeros(num_rows, bool)
        first = shard * size
        there[:count] = True if keep is None else keep[first : first + count]
        factors = tuple(
            rows.factors(scales, count, normalized=metric != "dot") for scales in buffer.scales
        )
        before, best = (
            best,
            top_k.update(
                best,
                on_devices,
                np.int32(shard),
                top_k.place(mesh, buffer.codes),
                top_k.place(mesh, factors),
                top_k.place(mesh, there),
                mesh=mesh,
                largest=largest,
            ),
        )
        # The buffer of the shard before is about to be filled anew.
        jax.block_until_ready(before)
    return jax.block_until_ready(best)
