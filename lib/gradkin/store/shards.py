"""Shards on disk: zarr3 arrays of one chunk each, through TensorStore; how one is committed.

A chunk is its plain bytes and, behind them, their CRC-32C. The entry in the manifest holds that
CRC too. So a chunk that is damaged, exchanged, cut short or gone is found whenever it is read:
zarr alone would take a missing chunk for zeros.
"""

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from gradkin.store import manifest
from gradkin.store.layout import (
    CorruptShardError,
    Spec,
    link_exclusively,
    make_folder,
    sync,
    token,
    write_new,
)
from gradkin.store.manifest import Entry

CRC_BYTES = 4
# The entry lies with its arrays; the manifest has it under a second name.
ENTRY = "entry.json"


def tensorstore() -> Any:
    """The module; only reading and writing shards needs it."""
    try:
        import tensorstore
    except ImportError as error:
        message = "Gradient stores need tensorstore: pip install 'gradkin[store]'"
        raise ImportError(message) from error
    return tensorstore


def describe(folder: Path, dtype: np.dtype, shape: tuple[int, ...]) -> dict[str, Any]:
    """TensorStore's description of an array of one chunk."""
    endian = {"configuration": {"endian": "little"}} if dtype.itemsize > 1 else {}
    return {
        "driver": "zarr3",
        "kvstore": {"driver": "file", "path": f"{folder}/"},
        "metadata": {
            "shape": list(shape),
            "data_type": dtype.name,
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(shape)}},
            # One file beside zarr.json, no folders to sync.
            "chunk_key_encoding": {"name": "default", "configuration": {"separator": "."}},
            "codecs": [{"name": "bytes", **endian}, {"name": "crc32c"}],
            "fill_value": 0,
        },
        # A chunk of zeros is written like any other: one that is not there is damage.
        "store_data_equal_to_fill_value": True,
        "context": {
            # What is written is synced below, once; nobody else knows the folder.
            "file_io_sync": False,
            "file_io_locking": {"mode": "none"},
        },
    }


def described(spec: Spec, rows: int) -> dict[str, tuple[np.dtype, tuple[int, ...]]]:
    """dtype and shape of each array of a shard."""
    return {
        "features": (spec.stored_dtype, (rows, spec.dim)),
        "scales": (np.dtype(np.float32), (rows, 2)),
    }


def chunk(folder: Path, name: str) -> Path:
    """The file of the one chunk of an array of two axes."""
    return folder / name / "c.0.0"


def stored_crc(path: Path, size: int) -> str:
    """The CRC-32C behind the bytes of a chunk.

    Raises:
      CorruptShardError: no such file, or of another size.
    """
    try:
        with open(path, "rb") as file:
            found = os.fstat(file.fileno()).st_size
            if found != size + CRC_BYTES:
                raise CorruptShardError(
                    f"{path} is damaged: it has {found} bytes, expected {size + CRC_BYTES}."
                )
            file.seek(size)
            return file.read(CRC_BYTES)[::-1].hex()
    except FileNotFoundError:
        raise CorruptShardError(f"{path} is gone, though its rows were committed.") from None


def commit(
    store: Path, spec: Spec, checkpoint: str, entry: Entry, arrays: dict[str, np.ndarray]
) -> None:
    """Write one part of a shard, and enter it into the manifest.

    Written aside, synced, renamed; then its entry gets a name in the manifest, which only one
    process can take. Killed at any point, the writer leaves either a commit or files that the
    manifest does not name; the next commit of the same rows, or `fill`, removes those.

    Args:
      store: folder of the store.
      spec: its properties.
      checkpoint: whose rows.
      entry: all but ``folder`` and ``checksums``.
      arrays: codes and scales by their names.

    Raises:
      FileExistsError: another process has committed this part.
    """
    ts, name = tensorstore(), f"{entry.part:04d}-{token()}"
    home = store / "shards" / checkpoint / f"{entry.shard:08d}"
    aside, final = home / f"aside-{name}", home / name
    path = manifest.path_of(store, checkpoint, entry.shard, entry.part)
    make_folder(home)
    make_folder(path.parent)
    try:
        aside.mkdir()
        checksums = {}
        for array, (dtype, shape) in described(spec, entry.stop - entry.start).items():
            target = ts.open(describe(aside / array, dtype, shape), create=True).result()
            target.write(arrays[array]).result()
            checksums[array] = stored_crc(chunk(aside, array), arrays[array].nbytes)
        entry = entry._replace(folder=str(final.relative_to(store)), checksums=checksums)
        for made in aside.rglob("*"):
            sync(made)
        write_new(aside / ENTRY, manifest.encode(entry))
        sync(aside)
        os.rename(aside, final)
        sync(home)
        link_exclusively(final / ENTRY, path)
    except BaseException as error:
        shutil.rmtree(aside, ignore_errors=True)
        # Whatever went wrong, files that the manifest names stay.
        if path.exists() and manifest.read(path, spec).folder != str(final.relative_to(store)):
            shutil.rmtree(final, ignore_errors=True)
            raise FileExistsError(
                f"Rows from example {entry.start} of checkpoint {checkpoint} have been committed "
                "by another process in the meantime."
            ) from error
        raise
    remove_leftovers(store, spec, checkpoint, entry.shard)


def remove_leftovers(store: Path, spec: Spec, checkpoint: str, shard: int) -> None:
    """Remove what killed writers left of the parts of a shard that are now committed.

    Of two writers of one part the slower one may lose its files here: it cannot commit any more.
    """
    parts = manifest.parts_of(store, spec, checkpoint, shard)
    named = {Path(entry.folder).name for entry in parts}
    for path in (store / "shards" / checkpoint / f"{shard:08d}").glob("*"):
        number = path.name.removeprefix("aside-").partition("-")[0]
        if number.isdecimal() and int(number) < len(parts) and path.name not in named:
            shutil.rmtree(path, ignore_errors=True)


def read(store: Path, spec: Spec, entry: Entry, codes: np.ndarray, scales: np.ndarray) -> None:
    """Read one part into arrays of its shape, and check every byte.

    Raises:
      CorruptShardError: damaged or gone.
    """
    ts, folder = tensorstore(), store / entry.folder
    targets, pending = {"features": codes, "scales": scales}, []
    for array, (dtype, shape) in described(spec, entry.stop - entry.start).items():
        path = chunk(folder, array)
        found = stored_crc(path, targets[array].nbytes)
        if found != entry.checksums.get(array):
            raise CorruptShardError(
                f"{path} is damaged: its CRC-32C is {found}, the manifest has "
                f"{entry.checksums.get(array)}."
            )
        try:
            source = ts.open(describe(folder / array, dtype, shape), open=True, create=False)
            target = ts.array(targets[array], copy=False, write=True)
            pending.append((path, target.write(source.result())))
        except Exception as error:
            raise damaged(path, error) from error
    for path, future in pending:
        try:
            future.result()
        except Exception as error:
            raise damaged(path, error) from error


def damaged(path: Path, error: Exception) -> CorruptShardError:
    """What TensorStore found, in this library's words."""
    return CorruptShardError(f"{path} is damaged: {str(error).strip()[:300]}")
