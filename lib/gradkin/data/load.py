"""The one function that reads data."""

import os
from pathlib import Path

from gradkin.data.bundled import LICENCES, load_bundled
from gradkin.data.dataset import Dataset
from gradkin.data.files import is_path, load_file
from gradkin.data.prepared import load_prepared


def load(
    name: str | os.PathLike,
    split: str = "train",
    *,
    data_dir: str | os.PathLike | None = None,
) -> Dataset:
    """Read one split of a real data set into NumPy arrays.

    ============================  =============================================================
    name                          what is read
    ============================  =============================================================
    digits, breast_cancer, iris,  scikit-learn's own copy (extra ``data``). ``all`` keeps its
    wine, diabetes, linnerud      order; ``train`` and ``test`` are a fixed shuffled split, one
                                  fifth of every class (of all rows in regression) for testing.
    mnist, glue/sst2, ...         any set that TensorFlow Datasets has prepared as array_record
                                  (extra ``data``), ``name[/config][:version]``; read without
                                  TensorFlow. ``split`` may be an expression like ``train[:10%]``.
    folder/, file.npz             ``folder/<split>.npz``; or the arrays ``<key>_<split>`` of the
                                  file, all its arrays where none ends in _train or _test.
    ============================  =============================================================

    Classification sets have ``label [N]`` int32 and ``image [N, H, W, C]`` uint8 or ``features
    [N, D]`` float32; regression sets have ``features`` and ``target``. 64-bit numbers come in 32
    bits, as JAX stores them; text and ragged values as object arrays. Pixels keep their stored
    range (`gradkin.data.images` scales them to [0, 1]). Nothing is downloaded or made up.

    Args:
      name: the name of a data set, or a path: absolute, starting with ``.`` or ``~``, or ending
        in ``.npz``.
      split: ``train``, ``test``, ``all`` or what the set offers.
      data_dir: where prepared TFDS sets lie; default the environment's ``TFDS_DATA_DIR``, else
        ``~/tensorflow_datasets``.

    Returns:
      A `Dataset`: the arrays by name, and the licence.

    Raises:
      ValueError: unknown name or split; the message lists the known ones.
      FileNotFoundError: the set is known but not prepared; the message says where it was looked
        for and the command that prepares it.
      ImportError: an extra is missing; the message names it.

    Example:
      >>> from gradkin import data
      >>> digits = data.load("digits")
      >>> digits["image"].shape, digits["label"].dtype, digits.num_classes
      ((1438, 8, 8, 1), dtype('int32'), 10)
    """
    if is_path(name):
        return load_file(Path(name).expanduser(), split)
    if name in LICENCES:
        return load_bundled(str(name), split)
    return load_prepared(str(name), split, data_dir=data_dir)
