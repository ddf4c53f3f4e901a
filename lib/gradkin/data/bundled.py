"""The small data sets that scikit-learn carries with it."""

import functools
from typing import Any

import numpy as np

from gradkin.data.dataset import Dataset
from gradkin.data.narrow import narrow

UCI = "CC BY 4.0 (UCI Machine Learning Repository), carried by scikit-learn"
UNSTATED = "not stated by its authors; carried by scikit-learn under BSD-3-Clause"
LICENCES = {
    "breast_cancer": UCI,
    "diabetes": UNSTATED,
    "digits": UCI,
    "iris": UCI,
    "linnerud": UNSTATED,
    "wine": UCI,
}
SPLITS = ("train", "test", "all")
TEST_FRACTION = 0.2


def load_bundled(name: str, split: str) -> Dataset:
    """Return one of scikit-learn's own data sets; see `gradkin.data.load`."""
    if split not in SPLITS:
        raise ValueError(f"Expected split to be one of {SPLITS} for {name}, got split={split!r}.")
    arrays, num_classes = read(name)
    if split != "all":
        strata = arrays["label"] if "label" in arrays else np.zeros(len(arrays["target"]), int)
        rows = split_rows(strata)[split]
        arrays = {key: value[rows] for key, value in arrays.items()}
    return Dataset(
        {key: value.copy() for key, value in arrays.items()},
        name=name,
        split=split,
        licence=LICENCES[name],
        num_classes=num_classes,
        pixel_max=16 if name == "digits" else None,
    )


@functools.cache
def read(name: str) -> tuple[dict[str, np.ndarray], int | None]:
    """The arrays in scikit-learn's order, and the number of classes."""
    try:
        from sklearn import datasets
    except ImportError as error:
        raise ImportError(
            f"Reading {name} needs scikit-learn: pip install 'gradkin[data]'."
        ) from error
    bunch: Any = getattr(datasets, f"load_{name}")()
    if name == "digits":
        image = bunch.images.astype(np.uint8)[..., None]
        return {"image": image, "label": narrow(bunch.target)}, 10
    features = narrow(bunch.data)
    if np.issubdtype(bunch.target.dtype, np.integer):
        return {"features": features, "label": narrow(bunch.target)}, len(bunch.target_names)
    return {"features": features, "target": narrow(bunch.target)}, None


def split_rows(strata: np.ndarray) -> dict[str, np.ndarray]:
    """Row numbers of a fixed train/test split that keeps the share of each stratum."""
    # The stream of RandomState is frozen; that of newer generators may change between versions.
    order = np.random.RandomState(0).permutation(len(strata))
    test = np.zeros(len(strata), bool)
    for stratum in np.unique(strata):
        rows = order[strata[order] == stratum]
        test[rows[: round(TEST_FRACTION * len(rows))]] = True
    return {"train": order[~test[order]], "test": order[test[order]]}
