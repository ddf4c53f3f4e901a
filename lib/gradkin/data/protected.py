"""Tables about people, with protected attributes, read from the files of their publishers."""

import csv
import gzip
import os
from pathlib import Path

import numpy as np

from gradkin.data.bundled import SPLITS, split_rows
from gradkin.data.dataset import Dataset

Rows = list[dict[str, str]]
AGES = (25, 45)  # up to 25, up to 45, above
ADULT_COLUMNS = [
    "age",
    "workclass",
    "fnlwgt",
    "education",
    "education-num",
    "marital-status",
    "occupation",
    "relationship",
    "race",
    "sex",
    "capital-gain",
    "capital-loss",
    "hours-per-week",
    "native-country",
    "income-per-year",
]
ADULT_NOMINAL = ("workclass", "marital-status", "occupation", "relationship")
RACES = {"African-American": 0, "Black": 0, "Caucasian": 1, "White": 1}
FILES = {
    "compas": ("compas-scores-two-years.csv", "compas_two_years_no_names.csv"),
    "adult": ("adult.data", "adult.csv", "adult.csv.gz"),
}


def load_protected(folder: str | os.PathLike, *, split: str = "train") -> Dataset:
    """Read one split of COMPAS or Adult, with protected attributes apart from the features.

    ========  ====================================================================================
    set       files in the folder, one of those named
    ========  ====================================================================================
    COMPAS    ``compas-scores-two-years.csv`` of ProPublica's compas-analysis (names of people may
              be taken out). Kept are the rows ProPublica kept; the label is rearrest in two years.
    Adult     ``adult.data`` and ``adult.test`` of the UCI repository; or ``adult.csv``, also
              gzipped, with a header. The label is an income above 50,000 dollars.
    ========  ====================================================================================

    Nothing is downloaded. Where there is one file, ``test`` is a fixed fifth of every class.

    Args:
      folder: where the files are.
      split: ``train``, ``test`` or ``all``.

    Returns:
      A `Dataset` of ``features [N, D]`` float32 without the protected ones, columns scaled to mean
      0 and variance 1 on the training split; ``label [N]`` int32; ``race [N]`` int32 (0 Black, 1
      white, 2 others), ``sex [N]`` int32 (1 female), ``age [N]`` float32 in years; and
      ``group [N]`` int32 from 0 to 17, ``6 race + 3 sex + a`` with ``a`` 0 up to the age of 25, 1
      up to 45, 2 above.

    Raises:
      ValueError: an unknown split, or a file without the columns it should have.
      FileNotFoundError: none of the files is there; the message lists them.

    Example:
      >>> import tempfile
      >>> from gradkin import data
      >>> data.load_protected(tempfile.gettempdir() + "/nothing-here")
      Traceback (most recent call last):
      FileNotFoundError: Expected compas-scores-two-years.csv, ...

    References:
      Angwin, Larson, Mattu & Kirchner (2016), "Machine Bias", ProPublica. :cite:`angwin:16`

      Becker & Kohavi (1996), "Adult", UCI Machine Learning Repository. :cite:`becker:96`
    """
    if split not in SPLITS:
        raise ValueError(f"Expected split to be one of {SPLITS}, got split={split!r}.")
    folder = Path(folder).expanduser()
    found = [(name, folder / file) for name, files in FILES.items() for file in files]
    there = [(name, path) for name, path in found if path.is_file()]
    if not there:
        wanted = ", ".join(path.name for _, path in found)
        raise FileNotFoundError(f"Expected {wanted} in {folder}, found none.")
    name, path = there[0]
    rows, is_test = read_compas(path) if name == "compas" else read_adult(path)
    columns = compas_columns(rows) if name == "compas" else adult_columns(rows)
    label = columns.pop("label").astype(np.int32)
    if is_test is None:
        is_test = np.zeros(len(rows), bool)
        is_test[split_rows(label)["test"]] = True
    features = np.stack(list(columns.values()), axis=1)
    train = features[~is_test]
    deviation = train.std(0)
    features = (features - train.mean(0)) / np.where(deviation == 0, 1, deviation)
    race = np.array([RACES.get(row["race"], 2) for row in rows], np.int32)
    sex = np.array([row["sex"] == "Female" for row in rows], np.int32)
    age = numbers(rows, "age")
    arrays = {
        "features": features.astype(np.float32),
        "label": label,
        "race": race,
        "sex": sex,
        "age": age.astype(np.float32),
        "group": (6 * race + 3 * sex + np.searchsorted(AGES, age)).astype(np.int32),
    }
    keep = {"train": ~is_test, "test": is_test, "all": np.ones(len(rows), bool)}[split]
    licence = {
        "compas": "not stated by ProPublica; public records about real people",
        "adult": "CC BY 4.0 (UCI Machine Learning Repository)",
    }[name]
    return Dataset(
        {key: value[keep] for key, value in arrays.items()},
        name=name,
        split=split,
        licence=licence,
        num_classes=2,
    )


def read_compas(path: Path) -> tuple[Rows, None]:
    """The rows that ProPublica analysed."""
    rows = read(path, None)
    require(rows, path, "days_b_screening_arrest", "is_recid", "score_text", "two_year_recid")

    def kept(row: dict[str, str]) -> bool:
        days = row["days_b_screening_arrest"]
        return (
            days != ""
            and abs(float(days)) <= 30
            and row["is_recid"] != "-1"
            and row["c_charge_degree"] != "O"
            and row["score_text"] != "N/A"
        )

    return [row for row in rows if kept(row)], None


def compas_columns(rows: Rows) -> dict[str, np.ndarray]:
    """Unprotected columns and the label."""
    counts = ("juv_fel_count", "juv_misd_count", "juv_other_count", "priors_count")
    return {
        "label": numbers(rows, "two_year_recid"),
        **{name: np.log1p(numbers(rows, name)) for name in counts},
        "felony": np.array([row["c_charge_degree"] == "F" for row in rows], float),
    }


def read_adult(path: Path) -> tuple[Rows, np.ndarray | None]:
    """All rows, and which are for testing where the publisher says so."""
    header = ADULT_COLUMNS if path.suffix == ".data" else None
    rows = read(path, header)
    require(rows, path, *ADULT_COLUMNS)
    other = path.with_name("adult.test")
    if header is None or not other.is_file():
        return rows, None
    test = read(other, header)
    return rows + test, np.arange(len(rows) + len(test)) >= len(rows)


def adult_columns(rows: Rows) -> dict[str, np.ndarray]:
    """Unprotected columns and the label; a nominal column becomes dummies."""
    columns = {
        "label": np.array([row["income-per-year"].startswith(">50K") for row in rows]),
        "education": numbers(rows, "education-num"),
        "hours": numbers(rows, "hours-per-week"),
        "gain": np.log1p(numbers(rows, "capital-gain")),
        "loss": np.log1p(numbers(rows, "capital-loss")),
    }
    for name in ADULT_NOMINAL:
        values = np.array([row[name] for row in rows])
        columns |= {f"{name}={value}": values == value for value in np.unique(values)}
    return {name: value.astype(float) for name, value in columns.items()}


def read(path: Path, header: list[str] | None) -> Rows:
    """The rows of a comma-separated file; lines that are no row (comments, blanks) are skipped."""
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8", newline="") as file:
        lines = [line for line in file if "," in line]
    return list(csv.DictReader(lines, fieldnames=header, skipinitialspace=True))


def require(rows: Rows, path: Path, *names: str) -> None:
    """Raise ValueError unless there are rows with these columns."""
    found = rows[0].keys() if rows else ()
    missing = [name for name in names if name not in found]
    if missing:
        raise ValueError(f"Expected the columns {missing} in {path}, found {sorted(found)}.")


def numbers(rows: Rows, name: str) -> np.ndarray:
    """A column of numbers."""
    return np.array([float(row[name]) for row in rows])
