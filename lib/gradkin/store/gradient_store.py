"""A gradient store: rows of features of many examples, under several checkpoints, on disk."""

import concurrent.futures
import contextlib
import dataclasses
import operator
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool, Float

from gradkin import checks
from gradkin.store import layout, manifest, rows, search, shards, streams, writing
from gradkin.store.layout import CorruptShardError, Spec
from gradkin.store.manifest import Entry
from gradkin.store.progress import shown
from gradkin.store.top_k import TopK
from gradkin.typing import Array

# Shards of one call that are encoded and written at a time.
WRITERS = 4
Features = Float[Array, "n dim"] | Float[np.ndarray, "n dim"]


@dataclasses.dataclass(frozen=True)
class GradientStore:
    """Rows on disk: one for each example and checkpoint, in files that are never changed.

    Examples have numbers from 0 on. Any number of processes may write at the same time, each its
    own shards; whoever reads sees what has been committed. Made by `create_store` and `open_store`.

    Attributes:
      folder: where it lies: a local or shared file system with hard links.
      spec: dimension, dtype, examples of a shard, and what made the rows.
    """

    folder: Path
    spec: Spec

    @property
    def checkpoints(self) -> tuple[str, ...]:
        """Names of the checkpoints that have rows, sorted."""
        folders = (self.folder / "manifest").iterdir()
        return tuple(sorted(folder.name for folder in folders if any(folder.iterdir())))

    def num_examples(self, *, checkpoint: str) -> int:
        """How many examples have a row.

        Raises:
          ValueError: no such checkpoint; or rows between others are missing.
        """
        self._check_checkpoint(checkpoint)
        return manifest.extent(self.spec, checkpoint, self._listing(checkpoint))

    def missing(
        self,
        num_examples: int,
        *,
        checkpoint: str,
        process_index: int = 0,
        num_processes: int = 1,
    ) -> list[tuple[int, int]]:
        """Ranges ``(start, stop)`` of examples without a row, each within one shard.

        Args:
          num_examples: how many there are to be.
          checkpoint: whose rows.
          process_index: give only the shards that fall to this process, taken in turn.
          num_processes: of so many.

        Raises:
          ValueError: ``num_examples`` below 1, or no such process.
        """
        checks.positive(num_examples=num_examples, num_processes=num_processes)
        if not 0 <= process_index < num_processes:
            raise ValueError(
                f"Expected process_index in [0, {num_processes}), got {process_index}."
            )
        size, found = self.spec.shard_size, self._listing(checkpoint)
        ranges = []
        for shard in range(process_index, -(-num_examples // size), num_processes):
            start = found[shard][-1].stop if shard in found else shard * size
            stop = min((shard + 1) * size, num_examples)
            if start < stop:
                ranges.append((start, stop))
        return ranges

    def write(self, features: Features, *, start: int, checkpoint: str) -> None:
        """Commit the rows of examples ``start, start + 1, ...``, shard by shard.

        Rows of a shard come in order. Of an array that lies on several processes, each writes the
        rows that it holds: they should be whole shards, or the start of one.

        Args:
          features: ``[n, dim]``, any floating dtype, finite.
          start: number of the first example.
          checkpoint: name; letters, digits and ``_ . = + -``.

        Raises:
          ValueError: a shape that does not fit, no rows, a row that is not finite, rows that are
            committed already or would leave a gap before them in their shard.
          TypeError: features not of a floating dtype.
          FileExistsError: another process has committed the same rows in the meantime.
        """
        start = integer("start", start)
        checks.non_negative(start=start)
        if not layout.NAME.fullmatch(checkpoint):
            raise ValueError(
                "Expected a checkpoint's name of letters, digits and _ . = + -, got "
                f"{checkpoint!r}."
            )
        for offset, local in writing.local_rows(features):
            array, first = rows.as_rows(local, self.spec.dim), start + offset
            entries = writing.commits(self.folder, self.spec, checkpoint, first, len(array))

            def commit(entry: Entry, array: np.ndarray = array, first: int = first) -> None:
                at = slice(entry.start - first, entry.stop - first)
                codes, scales = rows.encode(array[at], self.spec, start=entry.start)
                arrays = {"features": codes, "scales": scales}
                shards.commit(self.folder, self.spec, checkpoint, entry, arrays)

            # Shards do not depend on each other: one is encoded while others wait for the disk.
            with concurrent.futures.ThreadPoolExecutor(WRITERS) as pool:
                for done in [pool.submit(commit, entry) for entry in entries]:
                    done.result()

    def fill(
        self,
        features_of: Callable[[int, int], Any],
        *,
        num_examples: int,
        checkpoint: str,
        process_index: int | None = None,
        num_processes: int | None = None,
        progress: bool = False,
    ) -> None:
        """Compute and commit all rows that are missing; called again after a kill, it goes on.

        New examples are appended by a larger ``num_examples``.

        Args:
          features_of: ``(start, stop) -> [stop - start, dim]``, the rows of these examples.
          num_examples: how many there are.
          checkpoint: whose rows. Rows that are there under this name stay: after training anew,
            take another name or another store, for what made them is not looked at.
          process_index: which of the processes this is; default what `jax.distributed` says.
          num_processes: how many share the work, shard by shard in turn; default likewise.
          progress: show a progress bar (needs tqdm).

        Raises:
          ValueError: as `write` and `missing`; or ``features_of`` gives another number of rows.
        """
        if (process_index is None) != (num_processes is None):
            raise ValueError("Expected both process_index and num_processes, or neither.")
        if process_index is None or num_processes is None:
            # Without asking for devices: a process that only writes need not have any.
            several = jax.distributed.is_initialized()
            process_index = jax.process_index() if several else 0
            num_processes = jax.process_count() if several else 1
        for shard in self._listing(checkpoint):
            if shard % num_processes == process_index:
                shards.remove_leftovers(self.folder, self.spec, checkpoint, shard)
        todo = self.missing(
            num_examples,
            checkpoint=checkpoint,
            process_index=process_index,
            num_processes=num_processes,
        )
        for start, stop in shown(todo, progress, f"rows of {checkpoint}"):
            features = features_of(start, stop)
            if np.shape(features)[:1] != (stop - start,):
                raise ValueError(
                    f"Expected features_of({start}, {stop}) to give {stop - start} rows, got "
                    f"shape {np.shape(features)}."
                )
            self.write(features, start=start, checkpoint=checkpoint)

    def read(self, start: int, stop: int, *, checkpoint: str) -> np.ndarray:
        """The rows of examples ``start`` to ``stop - 1``, ``[stop - start, dim]`` float32.

        Raises:
          ValueError: no such checkpoint, or not all of these rows are there.
          CorruptShardError: what is there is not what was written.
        """
        self._check_checkpoint(checkpoint)
        found = self._listing(checkpoint)
        parts = [entry for shard in found.values() for entry in shard]
        covered = sum(max(0, min(stop, e.stop) - max(start, e.start)) for e in parts)
        if not 0 <= start < stop or covered != stop - start:
            raise ValueError(
                f"Expected a range of rows of checkpoint {checkpoint}, got ({start}, {stop}), of "
                f"which {covered} are there."
            )
        return np.concatenate(
            list(streams.decoded(self.folder, self.spec, parts, start, stop)), axis=0
        )

    def verify(self, *, progress: bool = False) -> int:
        """Read every committed byte and compare it with its checksum.

        Args:
          progress: show a progress bar (needs tqdm).

        Returns:
          How many rows there are, over all checkpoints.

        Raises:
          CorruptShardError: some are damaged; the message names all files. Rows are computed anew
            by `fill` once the entries of their shard are deleted from the manifest.
        """
        count, bad = 0, []
        entries = [e for name in self.checkpoints for p in self._listing(name).values() for e in p]
        for entry in shown(entries, progress, "verify"):
            buffer = streams.make_buffer(self.spec, 1, entry.stop - entry.start)
            try:
                shards.read(self.folder, self.spec, entry, buffer.codes[0], buffer.scales[0])
            except CorruptShardError as error:
                bad.append(str(error))
            count += entry.stop - entry.start
        if bad:
            raise CorruptShardError("\n".join(bad))
        return count

    def top_k(
        self,
        queries: Any,
        k: int,
        *,
        checkpoints: Sequence[str] | None = None,
        weights: Sequence[float] | None = None,
        metric: str = "dot",
        largest_of_queries: bool = False,
        mask: Bool[np.ndarray, " n"] | Bool[Array, " n"] | None = None,
        mesh: jax.sharding.Mesh | None = None,
        progress: bool = False,
    ) -> TopK:
        """The ``k`` examples with the largest scores for each query, exactly.

        .. math:: s(q, i) = \\sum_c w_c \\, \\langle q_c, f_{c,i} \\rangle

        over checkpoints ``c``, of the rows ``f`` as they are stored. ``cosine`` divides by the
        norms of both, ``normalized`` by the norm of the row alone. A row or query of zeros (norm
        below 1e-30) then has score 0: such is the row of an example whose loss is masked out
        entirely. Shards are read ahead, checked and scored one by one; memory is that of four.

        Args:
          queries: ``[Q, dim]``, or ``[C, Q, dim]`` for several checkpoints; or a store, whose rows
            under the same checkpoints are the queries.
          k: how many, at most the number of examples (that ``mask`` keeps).
          checkpoints: names; default the only one there is.
          weights: ``[C]`` factors of the checkpoints, such as their learning rates; default 1.
          metric: ``dot``, ``cosine`` or ``normalized``.
          largest_of_queries: an example's score is its largest over the queries (LESS: over the
            subtasks); the result then is one list.
          mask: ``[N]``, False for examples left out.
          mesh: devices that share each shard; default the first of this process. Where the devices
            are those of several processes, all of them call this, each reads its part of the
            shards, and all get the same result.
          progress: show a progress bar (needs tqdm).

        Returns:
          Scores and numbers of examples, ``[Q, k]``, best first; among equals the lowest number.

        Raises:
          ValueError: shapes, names, ``k`` or ``mask`` that do not fit; checkpoints that do not have
            the same examples; no queries; scores or queries that are not finite; a store of
            queries whose dimension or sketch is another.
          CorruptShardError: stored rows are damaged.
          RuntimeError: another process failed.
        """
        checks.one_of(search.METRICS, metric=metric)
        names = self._chosen(checkpoints)
        if isinstance(queries, GradientStore):
            queries = self._rows_of(queries, names)
        parts = {name: self._listing(name) for name in names}
        total = manifest.common_extent(self.spec, parts)
        prepared = search.prepare_queries(queries, self.spec, len(names), weights, metric)
        keep = search.prepare_mask(mask, total)
        available = total if keep is None else int(keep.sum())
        if not 1 <= k <= available:
            raise ValueError(f"Expected k between 1 and the {available} examples, got k={k}.")
        return search.best_examples(
            self.folder,
            self.spec,
            {shard: [parts[name][shard] for name in names] for shard in parts[names[0]]},
            prepared,
            k,
            metric=metric,
            largest_of_queries=largest_of_queries,
            keep=keep,
            mesh=mesh,
            progress=progress,
        )

    def _listing(self, checkpoint: str) -> dict[int, list[Entry]]:
        return manifest.listing(self.folder, self.spec, checkpoint)

    def _check_checkpoint(self, name: str) -> None:
        if name not in self.checkpoints:
            raise ValueError(
                f"Expected one of the checkpoints {self.checkpoints} of {self.folder}, got "
                f"{name!r}."
            )

    def _chosen(self, names: Sequence[str] | None) -> tuple[str, ...]:
        """The checkpoints to read."""
        if names is None:
            if len(self.checkpoints) != 1:
                raise ValueError(
                    f"Expected checkpoints to be named: {self.folder} has {self.checkpoints}."
                )
            return self.checkpoints
        if isinstance(names, str) or not names or len(set(names)) != len(names):
            raise ValueError(f"Expected different names as checkpoints, got {names!r}.")
        for name in names:
            self._check_checkpoint(name)
        return tuple(names)

    def _rows_of(self, other: "GradientStore", names: tuple[str, ...]) -> np.ndarray:
        """All rows of another store under the same checkpoints, ``[C, Q, dim]``."""
        for field in ("dim", "sketch"):
            own, their = getattr(self.spec, field), getattr(other.spec, field)
            if own != their:
                raise ValueError(
                    f"Expected stores of the same {field}, got {own!r} in {self.folder} and "
                    f"{their!r} in {other.folder}."
                )
        for name in names:
            other._check_checkpoint(name)
        parts = {name: other._listing(name) for name in names}
        total = manifest.common_extent(other.spec, parts)
        return np.stack([other.read(0, total, checkpoint=name) for name in names])


def integer(name: str, value: Any) -> int:
    """``value`` as a Python integer; TypeError for what is none."""
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(f"Expected {name} to be an integer, got {name}={value!r}.") from None


def create_store(
    folder: str | os.PathLike,
    *,
    dim: int,
    dtype: str = "float32",
    shard_size: int | None = None,
    sketch: str = "",
) -> GradientStore:
    """Make a store in a folder, or open the one that is there if it has the same properties.

    Any number of processes may call it at once.

    Args:
      folder: made if it is not there.
      dim: length of a row, such as the size of a sketch.
      dtype: ``float32``; ``bfloat16``; or ``int8`` with a factor for each row, where every value
        is off by 1/254 of the row's largest at most.
      shard_size: examples of a shard: what is committed, read and lost at a time. Default: as many
        as fill 8 MiB, a power of two.
      sketch: what made the rows, for instance the sketch and its key; stores that differ in it
        refuse to be compared.

    Returns:
      The store.

    Raises:
      ValueError: bad values, or the folder has a store with others.
      CorruptShardError: the store's file of properties is damaged.

    Example:
      >>> import tempfile
      >>> import numpy as np
      >>> from gradkin import store
      >>> features = np.array([[1.0, 0.0], [0.0, 2.0], [3.0, 4.0]], np.float32)
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     kept = store.create_store(folder, dim=2)
      ...     kept.fill(lambda start, stop: features[start:stop], num_examples=3, checkpoint="last")
      ...     found = kept.top_k(np.array([[0.0, 1.0]], np.float32), 2, metric="cosine")
      >>> found.indices.tolist()
      [[1, 2]]
    """
    dim = integer("dim", dim)
    checks.positive(dim=dim)
    dtype = str(dtype)
    checks.one_of(layout.DTYPES, dtype=dtype)
    size = layout.default_shard_size(dim, dtype) if shard_size is None else shard_size
    checks.positive(shard_size=size)
    size = integer("shard_size", size)
    path, spec = Path(folder).absolute(), Spec(dim, dtype, size, sketch)
    if not (path / "store.json").exists():
        # Where another process was faster, what it made is compared below.
        with contextlib.suppress(FileExistsError):
            layout.write_spec(path, spec)
    found = layout.read_spec(path)
    if shard_size is None:
        spec = spec._replace(shard_size=found.shard_size)
    for field in Spec._fields:
        if getattr(found, field) != getattr(spec, field):
            raise ValueError(
                f"Expected {field}={getattr(found, field)!r} of the store in {path}, got "
                f"{field}={getattr(spec, field)!r}."
            )
    return GradientStore(path, spec)


def open_store(folder: str | os.PathLike) -> GradientStore:
    """Open a store that is there.

    Args:
      folder: that of `create_store`.

    Returns:
      The store.

    Raises:
      FileNotFoundError: there is none.
      CorruptShardError: its file of properties is damaged.

    Example:
      >>> import tempfile
      >>> from gradkin import store
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     made = store.create_store(folder, dim=4, dtype="int8")
      ...     store.open_store(folder) == made, made.checkpoints
      (True, ())
    """
    path = Path(folder).absolute()
    spec = layout.read_spec(path)
    checks.one_of(layout.DTYPES, dtype=spec.dtype)
    return GradientStore(path, spec)
