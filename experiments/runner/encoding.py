"""Metrics as strict JSON, and back.

Integers and booleans are written as they are. Real numbers are rounded to float32 and written with
the fewest digits that give the same float32 back. JSON has no NaN and no infinities: they are the
strings "NaN", "Infinity" and "-Infinity".
"""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

MAX_BYTES = 1_000_000
NONFINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def encode(metrics: Mapping[str, Any]) -> dict[str, list]:
    """Return the metrics as nested lists; raise ValueError where they take more than 1 MB."""
    encoded = {name: nested(np.asarray(value)) for name, value in metrics.items()}
    sizes = {name: len(json.dumps(value)) for name, value in encoded.items()}
    if sum(sizes.values()) > MAX_BYTES:
        largest = sorted(sizes, key=lambda name: -sizes[name])[:3]
        shown = ", ".join(f"{n} {np.shape(metrics[n])}: {sizes[n]:,} bytes" for n in largest)
        raise ValueError(
            f"Expected metrics of at most {MAX_BYTES:,} bytes of JSON, got "
            f"{sum(sizes.values()):,}; the largest are {shown}. Summarise them in run, or evaluate "
            "less often."
        )
    return encoded


def decode(encoded: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Return the arrays that `encode` was given, real numbers as float32."""
    arrays = {name: np.asarray(numbers(value)) for name, value in encoded.items()}
    return {
        name: array.astype(np.float32) if array.dtype == np.float64 else array
        for name, array in arrays.items()
    }


def nested(array: np.ndarray) -> Any:
    """An array as nested lists of JSON numbers."""
    if array.dtype.kind in "iub" or not array.size:
        return array.tolist()
    if array.dtype.kind == "c" or array.dtype.kind in "OSUMm":
        raise TypeError(f"Expected metrics of real numbers, got dtype {array.dtype}.")
    with np.errstate(over="ignore"):  # beyond float32 is infinite, by the rule above
        flat = [number(x) for x in array.astype(np.float32).ravel()]
    for size in reversed(array.shape[1:]):
        flat = [flat[i : i + size] for i in range(0, len(flat), size)]
    return flat if array.ndim else flat[0]


def number(x: Any) -> float | str:
    """One float32 with the fewest digits, or the name of what JSON has no number for."""
    if np.isnan(x):
        return "NaN"
    if np.isinf(x):
        return "Infinity" if x > 0 else "-Infinity"
    return float(str(np.float32(x)))


def numbers(value: Any) -> Any:
    """Put the non-finite numbers back."""
    if isinstance(value, list):
        return [numbers(item) for item in value]
    return NONFINITE[value] if isinstance(value, str) else value


def dumps(document: Any) -> str:
    """Strict JSON, indented, with one line per list of numbers."""
    return write(document, "") + "\n"


def write(value: Any, indent: str) -> str:
    """One value; objects, and lists that hold objects, over several lines."""
    inner = indent + "  "
    if isinstance(value, Mapping):
        items = [f"{inner}{json.dumps(k)}: {write(v, inner)}" for k, v in value.items()]
        return "{\n" + ",\n".join(items) + f"\n{indent}}}" if items else "{}"
    if isinstance(value, list | tuple) and any(isinstance(v, Mapping) for v in value):
        return "[\n" + ",\n".join(inner + write(v, inner) for v in value) + f"\n{indent}]"
    return json.dumps(value, allow_nan=False, ensure_ascii=False)


def write_atomically(path: Path, text: str) -> None:
    """Write aside, flush to the disk, rename: a reader sees the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    with open(aside, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(aside, path)
