"""Data sets that TensorFlow Datasets prepared, read without TensorFlow."""

import os
from pathlib import Path
from typing import Any

import numpy as np

from gradkin.data.dataset import Dataset
from gradkin.data.narrow import narrow


def root_folder(data_dir: str | os.PathLike | None) -> Path:
    """Where prepared sets lie: ``data_dir``, else TFDS_DATA_DIR, else TFDS's own default."""
    if data_dir is None:
        data_dir = os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    return Path(data_dir).expanduser()


def prepared_names(root: Path) -> list[str]:
    """Names of the sets under ``root``."""
    if not root.is_dir():
        return []
    return sorted(folder.name for folder in root.iterdir() if any(folder.glob("*/features.json")))


def load_prepared(name: str, split: str, *, data_dir: str | os.PathLike | None) -> Dataset:
    """Return one split of a set prepared by TFDS; see `gradkin.data.load`."""
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise ImportError(
            f"Reading {name} needs tensorflow-datasets: pip install 'gradkin[data]'."
        ) from error
    folder = version_folder(name, root_folder(data_dir), known_names(tfds))
    builder: Any = tfds.builder_from_directory(folder)
    splits = sorted(builder.info.splits or {})
    if split not in ("all", *splits) and "[" not in split and "+" not in split:
        raise ValueError(
            f"Expected split to be one of {[*splits, 'all']} for {name}, got split={split!r}."
        )
    try:
        source = builder.as_data_source(split=split)
    except NotImplementedError as error:
        raise FileNotFoundError(
            f"{folder} is not stored as array_record, the format that is read without TensorFlow. "
            f"{recipe(name, folder.parent.parent)}"
        ) from error
    rows = source.__getitems__(list(range(len(source))))
    features = dict(builder.info.features)
    label, image = features.get("label"), features.get("image")
    return Dataset(
        stack(rows),
        name=name,
        split=split,
        licence=licence(builder.info),
        num_classes=getattr(label, "num_classes", None),
        pixel_max=255 if image is not None and image.np_dtype == np.uint8 else None,
    )


def known_names(tfds: Any) -> set[str]:
    """Names of TFDS's own sets: its list, and those it only lists once their module is imported."""
    checksums = (Path(tfds.__file__).parent / "url_checksums").glob("*.txt")
    return {*tfds.list_builders(with_community_datasets=False), *(file.stem for file in checksums)}


def version_folder(name: str, root: Path, known: set[str]) -> Path:
    """The folder of a prepared set, ``root/name[/config]/version``, newest version first."""
    path, _, version = name.partition(":")
    base = root / path
    if version:
        found = [base / version] if (base / version / "dataset_info.json").exists() else []
    else:
        found = [info.parent for info in base.glob("*/dataset_info.json")]
    if found:
        return max(
            found, key=lambda folder: [int(n) for n in folder.name.split(".") if n.isdigit()]
        )
    configs = sorted({info.parent.parent.name for info in base.glob("*/*/dataset_info.json")})
    if configs:
        raise ValueError(f"Expected one of the configurations of {path}: {path}/{configs}.")
    if path.partition("/")[0] not in known:
        from gradkin.data.bundled import LICENCES

        raise ValueError(
            f"Expected the name of a data set, got name={name!r}. Names: {sorted(LICENCES)} "
            f"(scikit-learn); {prepared_names(root)} (prepared in {root}); any other TFDS set once "
            "prepared; or the path of an npz file or folder (./name for a relative one)."
        )
    raise FileNotFoundError(f"Looked for {name} in {base} and found none. {recipe(name, root)}")


def recipe(name: str, root: Path) -> str:
    """How a user prepares a set; preparing needs TensorFlow, reading does not."""
    return (
        "Prepare it once, where TensorFlow is installed (pip install tensorflow "
        f"tensorflow-datasets): tfds build {name} --file_format=array_record --data_dir={root}; "
        "then pass data_dir or set TFDS_DATA_DIR."
    )


def licence(info: Any) -> str:
    """What TFDS says about the terms of use."""
    stated = getattr(info.redistribution_info, "license", "") if info.redistribution_info else ""
    return stated or f"not stated by TFDS; see {info.homepage}"


def stack(rows: list[dict[str, Any]]) -> dict[str, np.ndarray]:
    """Examples to arrays; nested names join with /, ragged values and text become objects."""
    columns: dict[str, list] = {}
    for row in rows:
        for key, value in flatten(row):
            columns.setdefault(key, []).append(value)
    return {key: column(values) for key, values in columns.items()}


def flatten(row: dict[str, Any], prefix: str = ""):
    """Pairs (path, value) of a nested dictionary."""
    for key, value in row.items():
        if isinstance(value, dict):
            yield from flatten(value, f"{prefix}{key}/")
        else:
            yield prefix + key, value


def column(values: list) -> np.ndarray:
    """One array of all values where shapes agree, else an array of objects."""
    first = values[0]
    uniform = not isinstance(first, (str, bytes)) and len({np.shape(v) for v in values}) == 1
    if uniform and np.asarray(first).dtype != object:
        return narrow(np.stack([np.asarray(v) for v in values]))
    out = np.empty(len(values), object)
    out[:] = values
    return out
