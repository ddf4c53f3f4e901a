"""One split of a data set, as NumPy arrays."""

import dataclasses
from collections.abc import Iterator, KeysView
from typing import Any

import numpy as np

from gradkin import checks
from gradkin.pytrees import register_dataclass


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Dataset:
    """One split of a data set: named arrays that share their leading axis, and the licence.

    Reads like a dictionary (``data["image"]``, ``dict(data)``) and is a pytree whose leaves are the
    arrays, so it can be an argument of a jitted function.

    Args:
      arrays: name -> array ``[N, ...]``.
      name: the data set.
      split: the split.
      licence: under which terms the data may be used, or that its source does not say.
      num_classes: how many classes ``label`` has; None where there is no such array.
      pixel_max: the largest value a pixel of ``image`` can take; None where there is none.

    Example:
      >>> import numpy as np
      >>> from gradkin import data
      >>> pair = data.Dataset({"x": np.arange(2)}, name="pair", split="all", licence="CC0")
      >>> len(pair), list(pair), pair["x"].tolist(), pair.licence
      (2, ['x'], [0, 1], 'CC0')
    """

    arrays: dict[str, Any]  # a tree map may put anything here
    name: str = dataclasses.field(metadata={"static": True})
    split: str = dataclasses.field(metadata={"static": True})
    licence: str = dataclasses.field(metadata={"static": True})
    num_classes: int | None = dataclasses.field(default=None, metadata={"static": True})
    pixel_max: int | None = dataclasses.field(default=None, metadata={"static": True})

    def __getitem__(self, key: str) -> Any:
        if key not in self.arrays:
            raise KeyError(f"{self.name} has {sorted(self.arrays)}, not {key!r}.")
        return self.arrays[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.arrays)

    def __contains__(self, key: object) -> bool:
        return key in self.arrays

    def __len__(self) -> int:
        """The number of examples."""
        return len(next(iter(self.arrays.values())))

    def keys(self) -> KeysView[str]:
        """The names of the arrays."""
        return self.arrays.keys()


def images(dataset: Dataset, *, flatten: bool = False) -> np.ndarray:
    """Return the images of a data set as float32 in [0, 1].

    Args:
      dataset: a data set with an array ``image [N, H, W, C]`` of one size.
      flatten: whether to return ``[N, H W C]`` instead of ``[N, H, W, C]``.

    Returns:
      ``image / pixel_max`` in float32.

    Raises:
      ValueError: when the data set has no images.

    Example:
      >>> from gradkin import data
      >>> digits = data.load("digits", "test")
      >>> data.images(digits).shape, float(data.images(digits, flatten=True).max())
      ((359, 8, 8, 1), 1.0)
    """
    if "image" not in dataset or dataset.pixel_max is None:
        raise ValueError(
            f"Expected a data set with images of integer pixels, got dataset={dataset.name!r} with "
            f"arrays {sorted(dataset.keys())}."
        )
    checks.rank(4, image=dataset["image"])
    image = np.asarray(dataset["image"], np.float32) / dataset.pixel_max
    return image.reshape(len(image), -1) if flatten else image
