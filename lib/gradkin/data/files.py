"""Data sets in npz files."""

import os
from pathlib import Path

import numpy as np

from gradkin.data.dataset import Dataset
from gradkin.data.narrow import narrow


def is_path(name: str | os.PathLike) -> bool:
    """Whether a name means a file or folder: absolute, starting with . or ~, or ending in .npz."""
    if isinstance(name, os.PathLike):
        return True
    return name.startswith((".", "~", os.sep)) or Path(name).is_absolute() or name.endswith(".npz")


def load_file(path: Path, split: str) -> Dataset:
    """Return one split of an npz file or of a folder of them; see `gradkin.data.load`."""
    if not path.exists():
        raise FileNotFoundError(f"There is no file or folder {path}.")
    if path.is_dir():
        file = path / f"{split}.npz"
        if not file.exists():
            found = sorted(entry.stem for entry in path.glob("*.npz"))
            raise FileNotFoundError(f"There is no {file}; splits in that folder: {found}.")
        arrays = read(file)
    else:
        arrays = pick(read(path), split, path)
    lengths = {key: value.shape[0] if value.ndim else None for key, value in arrays.items()}
    if not lengths or len(set(lengths.values())) != 1 or None in lengths.values():
        raise ValueError(
            f"Expected the arrays of {path} to share their leading axis, got lengths {lengths}."
        )
    label, image = arrays.get("label"), arrays.get("image")
    whole = label is not None and np.issubdtype(label.dtype, np.integer) and label.size > 0
    return Dataset(
        arrays,
        name=path.stem,
        split=split,
        licence=f"not stated ({path.name} is the user's own)",
        num_classes=int(label.max()) + 1 if label is not None and whole else None,
        pixel_max=255 if image is not None and image.dtype == np.uint8 else None,
    )


def read(path: Path) -> dict[str, np.ndarray]:
    """All arrays of one npz file; pickled objects are refused."""
    with np.load(path, allow_pickle=False) as file:
        return {key: narrow(file[key]) for key in file.files}


def pick(arrays: dict[str, np.ndarray], split: str, path: Path) -> dict[str, np.ndarray]:
    """The arrays called ``<key>_<split>``, or all where the file has no train and test."""
    endings = {key.rpartition("_")[2] for key in arrays if "_" in key}
    if not endings & {"train", "test"}:
        if split not in ("train", "all"):
            raise ValueError(f"Expected split='all', as {path} has one split, got split={split!r}.")
        return arrays
    chosen = {
        key.removesuffix(f"_{split}"): value
        for key, value in arrays.items()
        if key.endswith(f"_{split}")
    }
    if not chosen:
        raise ValueError(f"Expected arrays named '..._{split}' in {path}, got {sorted(arrays)}.")
    return chosen
