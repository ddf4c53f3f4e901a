"""Which rows a process writes, and the commits that they are cut into."""

from pathlib import Path
from typing import Any

import jax
import numpy as np

from gradkin.store import manifest
from gradkin.store.layout import Spec
from gradkin.store.manifest import Entry


def commits(store: Path, spec: Spec, checkpoint: str, start: int, count: int) -> list[Entry]:
    """The commits that rows are cut into, once it is sure that all of them fit.

    Raises:
      ValueError: rows that are committed already, or that would leave a gap in their shard.
    """
    found, at = [], start
    while at < start + count:
        shard, first, end = spec.shard_of(at)
        parts = manifest.parts_of(store, spec, checkpoint, shard)
        there = parts[-1].stop if parts else first
        if at < there:
            raise ValueError(
                f"Expected rows that are not there, got start={at}: checkpoint {checkpoint} has "
                f"those of {first} to {there - 1}."
            )
        if at > there:
            raise ValueError(
                f"Expected the rows of a shard in order, got start={at}: those from {there} on "
                f"are not there yet (shard_size={spec.shard_size})."
            )
        stop = min(end, start + count)
        found.append(Entry(shard, len(parts), at, stop, "", {}))
        at = stop
    return found


def local_rows(features: Any) -> list[tuple[int, Any]]:
    """What this process holds of the features: offsets and rows.

    Raises:
      ValueError: pieces of rows lie on different devices.
    """
    if not isinstance(features, jax.Array) or features.is_fully_addressable:
        return [(0, features)]
    runs: list[tuple[int, list[np.ndarray]]] = []
    own = (shard for shard in features.addressable_shards if shard.replica_id == 0)
    for shard in sorted(own, key=lambda shard: shard.index[0].start or 0):
        data, offset = np.asarray(shard.data), shard.index[0].start or 0
        if data.shape[1:] != features.shape[1:]:
            raise ValueError(
                f"Expected features split by rows only, got pieces {data.shape} of "
                f"{features.shape}."
            )
        if runs and runs[-1][0] + sum(map(len, runs[-1][1])) == offset:
            runs[-1][1].append(data)
        else:
            runs.append((offset, [data]))
    return [(offset, np.concatenate(pieces)) for offset, pieces in runs]
