"""A zoo of models on disk: an Orbax checkpoint for each, and what is known about them in one file.

zoo.json        a list with one record per model; without it there is no zoo
models/NUMBER/  the parameters of one model, arrays that TensorStore reads on their own
"""

import dataclasses
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from gradkin.store.layout import create_exclusively, make_folder, token
from gradkin.typing import PyTree

FORMAT = "gradkin model zoo, version 1"


@dataclasses.dataclass(frozen=True)
class ModelZoo:
    """Many models, read one at a time.

    Attributes:
      folder: where they lie.
      records: what is known about each: hyper-parameters, seeds, measures.
    """

    folder: Path
    records: tuple[dict[str, Any], ...]

    def __len__(self) -> int:
        """The number of models."""
        return len(self.records)

    def find(self, **wanted: Any) -> tuple[int, ...]:
        """Numbers of the models whose records have all these values.

        Raises:
          KeyError: a name that no record has.
        """
        for name in wanted:
            if not any(name in record for record in self.records):
                raise KeyError(f"No record has {name!r}.")
        return tuple(
            number
            for number, record in enumerate(self.records)
            if all(name in record and record[name] == value for name, value in wanted.items())
        )

    def params(self, number: int, like: PyTree | None = None) -> PyTree:
        """Parameters of one model, as NumPy arrays; no other model is read.

        Args:
          number: which model, from 0.
          like: a pytree of the same structure, shapes and dtypes. Without it, dictionaries and
            lists come back as they were and other containers as dictionaries.

        Raises:
          IndexError: no such model.
        """
        if not 0 <= number < len(self):
            raise IndexError(f"Expected a model from 0 to {len(self) - 1}, got {number}.")
        import orbax.checkpoint as ocp  # an extra

        if like is not None:
            like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(np.shape(x), x.dtype), like)
        with ocp.StandardCheckpointer() as checkpointer:
            return checkpointer.restore(_path(self.folder, number), like)


def save_zoo(
    folder: str | os.PathLike, models: Iterable[tuple[PyTree, dict[str, Any]]]
) -> ModelZoo:
    """Write a zoo: each model's parameters as it comes, then the records.

    Args:
      folder: where; made if it is not there. What a save that was cut short left is replaced.
      models: pairs of a pytree of arrays and a record, a dictionary of what JSON can hold; scalars
        and small arrays of NumPy and JAX become numbers and lists.

    Returns:
      The zoo, as `open_zoo` reads it.

    Raises:
      FileExistsError: the folder has a zoo.
      ValueError: no models.
      TypeError: a record that is not made of what JSON can hold.

    Example:
      >>> import tempfile
      >>> import numpy as np
      >>> from gradkin import store
      >>> models = [({"w": np.full(2, i, np.float32)}, {"width": i}) for i in range(3)]
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     zoo = store.save_zoo(folder, models)
      ...     zoo.params(*zoo.find(width=2))["w"].tolist()
      [2.0, 2.0]

    References:
      Schuerholt et al. (2025), "A Model Zoo on Phase Transitions in Neural Networks",
      arXiv:2504.18072. :cite:`phase-model-zoo`
    """
    import orbax.checkpoint as ocp

    folder = Path(folder).resolve()
    index = folder / "zoo.json"
    if index.exists():
        raise FileExistsError(f"There is a zoo in {folder}.")
    make_folder(folder / "models")
    records = []
    with ocp.StandardCheckpointer() as checkpointer:
        for number, (params, record) in enumerate(models):
            records.append(json.loads(json.dumps(record, default=_plain)))
            arrays = jax.tree.map(np.asarray, params)
            checkpointer.save(_path(folder, number), arrays, force=True)
    if not records:
        raise ValueError("Expected at least one model.")
    text = json.dumps({"format": FORMAT, "records": records}, indent=1)
    create_exclusively(index, text.encode(), aside=folder / f"aside-{token()}.json")
    return open_zoo(folder)


def open_zoo(folder: str | os.PathLike) -> ModelZoo:
    """Read the records of a zoo; parameters are read when they are asked for.

    Args:
      folder: where `save_zoo` wrote it.

    Returns:
      `ModelZoo`.

    Raises:
      FileNotFoundError: there is no zoo.
      ValueError: its file is of another format.

    Example:
      >>> from gradkin import store
      >>> store.open_zoo("no/such/folder")
      Traceback (most recent call last):
      FileNotFoundError: Expected a model zoo in no/such/folder: there is no zoo.json.
    """
    index = Path(folder) / "zoo.json"
    if not index.exists():
        raise FileNotFoundError(f"Expected a model zoo in {folder}: there is no zoo.json.")
    document = json.loads(index.read_bytes())
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise ValueError(f"{index} is not of this format: {FORMAT}.")
    return ModelZoo(Path(folder).resolve(), tuple(document["records"]))


def _path(folder: Path, number: int) -> Path:
    return folder / "models" / f"{number:06d}"


def _plain(value: Any) -> Any:
    """What JSON does not know, as what it does."""
    if isinstance(value, np.generic | np.ndarray | jax.Array):
        return np.asarray(value).tolist()
    raise TypeError(f"Expected what JSON can hold, got {type(value).__name__}.")
