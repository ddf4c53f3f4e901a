"""What a store is: its fixed properties, its folder, and files that are there whole or not at all.

    store.json                           properties, written once
    shards/CHECKPOINT/SHARD/PART-TOKEN/  two zarr3 arrays: `features` and `scales`
    manifest/CHECKPOINT/SHARD.PART.json  one entry: these rows are committed, and lie there

Shard ``i`` has room for the examples ``i * shard_size`` up to ``(i + 1) * shard_size``. Rows that
come later continue it in a further part.
"""

import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

DTYPES = ("float32", "bfloat16", "int8")
FORMAT = "gradkin gradient store, version 1"
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.=+-]*")
# A shard is read, checked and scored as one piece, while a processor's cache still holds it: scans
# of shards eight times as large took five times as long.
SHARD_BYTES = 8 * 2**20


class CorruptShardError(ValueError):
    """Stored bytes are not the bytes that were committed, or are gone."""


class Spec(NamedTuple):
    """What never changes about a store.

    Attributes:
      dim: length of a row.
      dtype: what rows are stored in.
      shard_size: most rows of a shard.
      sketch: says what made the rows; stores that differ here are not compared.
    """

    dim: int
    dtype: str
    shard_size: int
    sketch: str

    @property
    def stored_dtype(self) -> np.dtype:
        """NumPy's name for it."""
        if self.dtype == "bfloat16":
            import ml_dtypes  # NumPy has no such type; it comes with jax

            return np.dtype(ml_dtypes.bfloat16)
        return np.dtype(self.dtype)

    def shard_of(self, example: int) -> tuple[int, int, int]:
        """Number, start and stop of the shard that has room for an example."""
        number = example // self.shard_size
        return number, number * self.shard_size, (number + 1) * self.shard_size


def default_shard_size(dim: int, dtype: str) -> int:
    """The power of two whose rows fill `SHARD_BYTES`."""
    row = dim * Spec(dim, dtype, 1, "").stored_dtype.itemsize
    return 1 << max(0, (SHARD_BYTES // row).bit_length() - 1)


def signed(document: dict[str, Any]) -> bytes:
    """The document as text, with a checksum of itself."""
    return json.dumps({**document, "checksum": digest(document)}, indent=1).encode()


def parse(text: bytes, path: Path) -> dict[str, Any]:
    """Read back what `signed` wrote.

    Raises:
      CorruptShardError: not the text that was written.
    """
    try:
        document = json.loads(text)
        checksum = document.pop("checksum")
    except (ValueError, KeyError, AttributeError, TypeError):
        raise CorruptShardError(f"{path} is damaged: not a document of a gradient store.") from None
    if checksum != digest(document):
        raise CorruptShardError(f"{path} is damaged: it is not what its checksum says.")
    return document


def digest(document: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()[:32]


def write_spec(folder: Path, spec: Spec) -> None:
    """Make a store, unless the folder already has one.

    Raises:
      FileExistsError: the folder has one.
    """
    make_folder(folder / "manifest")
    create_exclusively(
        folder / "store.json",
        signed({"format": FORMAT, **spec._asdict()}),
        aside=folder / f"aside-{token()}.json",
    )


def read_spec(folder: Path) -> Spec:
    """The properties of the store in a folder.

    Raises:
      FileNotFoundError: there is none.
      CorruptShardError: its file is damaged.
    """
    path = folder / "store.json"
    if not path.exists():
        raise FileNotFoundError(f"Expected a gradient store in {folder}: there is no store.json.")
    document = parse(path.read_bytes(), path)
    if document.pop("format", None) != FORMAT:
        raise CorruptShardError(f"{path} is not of this format: {FORMAT}.")
    return Spec(**document)


def token() -> str:
    """A name that no other writer uses."""
    return os.urandom(6).hex()


def sync(path: Path) -> None:
    """Have the disk hold what was written: the bytes of a file, or the names in a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(folder: Path) -> None:
    """Make a folder and those above it, and have the disk hold their names."""
    if not folder.is_dir():
        make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        sync(folder.parent)


def write_new(path: Path, data: bytes) -> None:
    """Make a file, and have the disk hold its bytes."""
    with open(path, "xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def create_exclusively(path: Path, data: bytes, *, aside: Path) -> None:
    """Make a file, whole or not at all, where there is none.

    Args:
      path: the file.
      data: what it is to hold.
      aside: a name in the same file system that nobody else uses; not there afterwards.

    Raises:
      FileExistsError: there is one.
    """
    write_new(aside, data)
    try:
        link_exclusively(aside, path)
    finally:
        aside.unlink()


def link_exclusively(source: Path, path: Path) -> None:
    """Give a complete file a second name, which no other file may have.

    A hard link is whole or not there, and fails where the name is taken; ``O_EXCL`` would leave an
    empty file behind a process that is killed before it writes.

    Raises:
      FileExistsError: another file has the name.
    """
    try:
        os.link(source, path)
    except FileExistsError:
        # A network file system may repeat a request that had succeeded.
        if not os.path.samefile(source, path):
            raise
    sync(path.parent)
