"""The rows of private data: what is refused, what is left out, and in which class each one is."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from gradkin import checks
from gradkin.typing import Array

OUTSIDE = ("refuse", "clip", "drop")


class Rows(NamedTuple):
    """Private rows that passed the checks.

    Attributes:
      x: ``[n, d]``; zeros where ``keep`` is False.
      labels: class of each row ``[n]``; zeros without classes.
      keep: which rows count ``[n]``.
      num_classes: 1 without classes.
    """

    x: Array
    labels: Array
    keep: Array
    num_classes: int


def checked_rows(x: Any, mask: Any, labels: Any, num_classes: int | None) -> Rows:
    """Private rows, refused where they are wrong and can be read, left out where they cannot.

    A row with a value that is not finite is refused; inside `jit`, where it cannot be seen, it is
    left out by select, and so is a row whose label is not a class.
    """
    x = jnp.asarray(x)
    if x.ndim != 2 or 0 in x.shape:
        raise ValueError(f"Expected x to be rows [n, d], at least one, got x.shape={x.shape}.")
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(
            f"Expected x to be floating, got x.dtype={x.dtype}: scale it by a constant."
        )
    n = x.shape[0]
    x = x.astype(np.promote_types(x.dtype, np.float32))
    keep = jnp.ones((n,), bool) if mask is None else jnp.asarray(mask)
    if keep.shape != (n,) or keep.dtype != bool:
        raise ValueError(
            f"Expected mask to be boolean of shape ({n},), got {keep.dtype} of shape {keep.shape}."
        )
    finite = jnp.all(jnp.isfinite(x), axis=1)
    refuse_rows(keep & ~finite, "x to be finite", "with NaN or infinity")
    keep = keep & finite
    if labels is None:
        if num_classes is not None:
            raise ValueError(f"Expected labels with num_classes={num_classes}, got none.")
        return Rows(zeroed(x, keep), jnp.zeros((n,), np.int32), keep, 1)
    labels = jnp.asarray(labels)
    if num_classes is None or num_classes < 1:
        raise ValueError(
            f"Expected num_classes >= 1 with labels, got num_classes={num_classes}: it is public, "
            "and not read off private labels."
        )
    if labels.shape != (n,) or not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ValueError(
            f"Expected labels to be integers of shape ({n},), got {labels.dtype} of shape "
            f"{labels.shape}."
        )
    known = (labels >= 0) & (labels < num_classes)
    refuse_rows(keep & ~known, f"labels below num_classes={num_classes}", "with another label")
    keep = keep & known
    labels = jnp.where(keep, labels, 0).astype(np.int32)
    return Rows(zeroed(x, keep), labels, keep, num_classes)


def within_box(rows: Rows, lower: Array, upper: Array, outside: str) -> Rows:
    """Rows inside ``[lower, upper]``, both ``[d]``."""
    checks.one_of(OUTSIDE, outside=outside)
    inside = jnp.all((rows.x >= lower[None]) & (rows.x <= upper[None]), axis=1)
    refuse_outside(rows.keep & ~inside, outside, "x within [lower, upper]")
    if outside == "drop":
        keep = rows.keep & inside
        return rows._replace(x=zeroed(rows.x, keep), keep=keep)
    return rows._replace(x=jnp.clip(rows.x, lower[None], upper[None]))


def within_ball(rows: Rows, max_norm: float, outside: str) -> Rows:
    """Rows of Euclidean norm at most ``max_norm``; the last bits of a norm are always cut."""
    checks.one_of(OUTSIDE, outside=outside)
    norms = jnp.sqrt(jnp.sum(jnp.square(rows.x), axis=1))
    inside = norms <= max_norm * (1 + 1e-5)
    refuse_outside(rows.keep & ~inside, outside, f"rows of norm <= max_norm={max_norm}")
    if outside == "drop":
        rows = rows._replace(keep=rows.keep & inside)
        rows = rows._replace(x=zeroed(rows.x, rows.keep))
    # A little below one: the norm of the product must not exceed the bound by rounding.
    factors = jnp.where(norms > max_norm * (1 - 1e-6), max_norm * (1 - 1e-6) / norms, 1)
    return rows._replace(x=rows.x * factors[:, None])


def zeroed(x: Array, keep: Array) -> Array:
    """Zeros in the rows that are left out, by select."""
    return jnp.where(keep[:, None], x, 0)


def refuse_outside(rows: Array, outside: str, expected: str) -> None:
    """Raise ValueError for rows out of a public bound, unless told what to do with them."""
    if outside != "refuse":
        return
    if not checks.is_concrete(rows):
        raise ValueError(
            f"Expected outside='clip' or 'drop' inside jit, where {expected} cannot be checked, "
            "got outside='refuse'."
        )
    refuse_rows(rows, expected, "outside; outside='clip' or 'drop' says what to do with them")


def refuse_rows(rows: Array, expected: str, got: str) -> None:
    """Raise ValueError where any row is marked and can be seen."""
    if checks.is_concrete(rows) and (count := int(np.sum(np.asarray(rows)))):
        raise ValueError(f"Expected {expected}, got {count} rows {got}.")
