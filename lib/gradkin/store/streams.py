"""Shards one after another, read ahead into a few buffers that are used again and again."""

import concurrent.futures
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from gradkin.store import rows, shards
from gradkin.store.layout import Spec
from gradkin.store.manifest import Entry

# XLA takes arrays that start at a multiple of this where they lie, without a copy.
ALIGNMENT = 64
# One is being scored, one may still be, two are being read.
BUFFERS = 4
READERS = 2


class Buffer(NamedTuple):
    """Room for one shard: for each checkpoint codes ``[R, dim]`` and scales ``[R, 2]``."""

    codes: tuple[np.ndarray, ...]
    scales: tuple[np.ndarray, ...]


class Loaded(NamedTuple):
    """A shard in memory.

    Attributes:
      shard: its number.
      count: rows that are there; what lies behind them means nothing.
      buffer: where they are.
    """

    shard: int
    count: int
    buffer: Buffer


def aligned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """An array without values at a multiple of `ALIGNMENT`."""
    size = int(np.prod(shape)) * dtype.itemsize
    raw = np.empty(size + ALIGNMENT, np.uint8)
    first = -raw.ctypes.data % ALIGNMENT
    return raw[first : first + size].view(dtype).reshape(shape)


def make_buffer(spec: Spec, checkpoints: int, num_rows: int) -> Buffer:
    """Room for the shards of so many checkpoints."""
    return Buffer(
        tuple(aligned((num_rows, spec.dim), spec.stored_dtype) for _ in range(checkpoints)),
        tuple(aligned((num_rows, 2), np.dtype(np.float32)) for _ in range(checkpoints)),
    )


def load(
    store: Path, spec: Spec, shard: int, parts: Sequence[Sequence[Entry]], buffer: Buffer
) -> Loaded:
    """Read all parts of one shard of each checkpoint."""
    count = 0
    for entries, codes, scales in zip(parts, *buffer, strict=True):
        first = shard * spec.shard_size
        for entry in entries:
            at = slice(entry.start - first, entry.stop - first)
            shards.read(store, spec, entry, codes[at], scales[at])
        count = entries[-1].stop - first
    return Loaded(shard, count, buffer)


def stream(
    store: Path,
    spec: Spec,
    plan: Mapping[int, Sequence[Sequence[Entry]]],
    *,
    num_rows: int,
    buffers: int = BUFFERS,
) -> Iterator[Loaded]:
    """The shards of a plan, in its order.

    A buffer belongs to who got it until the second next shard is asked for; then it is filled anew.

    Args:
      store: folder of the store.
      spec: its properties.
      plan: shard -> for each checkpoint the parts of it.
      num_rows: room in a buffer, at least the rows of the longest shard.
      buffers: how many there are; the memory that a stream takes.
    """
    todo, waiting, given = iter(plan.items()), deque(), deque()
    checkpoints = len(next(iter(plan.values()), ()))
    free = [make_buffer(spec, checkpoints, num_rows) for _ in range(min(buffers, len(plan)))]
    with concurrent.futures.ThreadPoolExecutor(READERS) as pool:
        try:
            while True:
                while free and (job := next(todo, None)) is not None:
                    waiting.append(pool.submit(load, store, spec, *job, free.pop()))
                if not waiting:
                    return
                loaded = waiting.popleft().result()
                yield loaded
                given.append(loaded.buffer)
                if len(given) > 1:
                    free.append(given.popleft())
        finally:
            pool.shutdown(cancel_futures=True)


def decoded(
    store: Path, spec: Spec, parts: Sequence[Entry], start: int, stop: int
) -> Iterator[np.ndarray]:
    """Rows ``start`` to ``stop`` of one checkpoint, in float32, part by part."""
    for entry in parts:
        first, last = max(start, entry.start), min(stop, entry.stop)
        if first < last:
            buffer = make_buffer(spec, 1, entry.stop - entry.start)
            codes, scales = buffer.codes[0], buffer.scales[0]
            shards.read(store, spec, entry, codes, scales)
            at = slice(first - entry.start, last - entry.start)
            yield rows.decode(codes[at], scales[at])
