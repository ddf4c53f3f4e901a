"""Search by regression: parameters for which a model of cheap runs predicts the lowest loss."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Float

from gradkin import checks
from gradkin.typing import Array, ArrayLike, PyTree


class RegressionSearch(NamedTuple):
    """What `regression_search` found.

    Attributes:
      params: the mean of the best candidates.
      best: which they are, best first, ``[top]``.
      predicted: loss of each candidate, ``[m]``.
      correlation: Spearman's, of predicted and measured losses held out; NaN without them.
    """

    params: PyTree
    best: Array
    predicted: Array
    correlation: Array


def regression_search(
    params: PyTree,
    losses: Float[ArrayLike, " n"],
    candidates: PyTree,
    *,
    top: int = 10,
    regressor: Any = None,
    held_out: tuple[PyTree, Any] | None = None,
) -> RegressionSearch:
    """Search by a regression of losses on parameters (Liu et al. 2024; Liu et al. 2025, sec. 3).

    Train a small model for each of many parameters, fit a regressor to their losses, let it predict
    the losses of very many more, and take the mean of the few best.

    Args:
      params: pytree of arrays ``[n, ...]``, what was tried.
      losses: ``[n]``, as from ``jax.lax.map(train, params)`` or a loop on the host. With one key
        for all runs they differ less by chance.
      candidates: pytree like ``params`` with leaves ``[m, ...]``.
      top: how many of the best candidates are averaged; the set of parameters should be convex.
      regressor: an object with ``fit(x [n, k], y [n])`` and ``predict(x) -> [m]``, for instance
        ``lightgbm.LGBMRegressor()`` as in the paper; None takes scikit-learn's
        `HistGradientBoostingRegressor`, with leaves of a fifth of the runs where these are fewer
        than a hundred. It runs on the host, out of compiled code too.
      held_out: ``(params, losses)`` of runs to which it is not fitted, which tell how far to trust
        it.

    Returns:
      `RegressionSearch`.

    Raises:
      ValueError: trees that differ, numbers of rows that differ, ``top`` outside 1, ..., m, what
        is predicted not one number for each candidate, or, where they can be read, losses that
        are not finite.
      ImportError: without a regressor and scikit-learn (``pip install 'gradkin[data]'``).

    Example:
      >>> import jax.numpy as jnp, numpy as np
      >>> from gradkin import selection
      >>> class Nearest:
      ...     def fit(self, x, y):
      ...         self.x, self.y = x, y
      ...     def predict(self, x):
      ...         return self.y[np.argmin(np.abs(x - self.x.T), axis=1)]
      >>> tried = jnp.linspace(0, 1, 11)
      >>> losses = (tried - 0.3) ** 2
      >>> many = jnp.linspace(0, 1, 101)
      >>> found = selection.regression_search(tried, losses, many, regressor=Nearest())
      >>> round(float(found.params), 2)
      0.3

    References:
      Liu et al. (2024), "RegMix: Data Mixture as Regression for Language Model Pre-training",
      arXiv:2407.01492. :cite:`liu:24b`
      Liu et al. (2025), arXiv:2504.16511. :cite:`quadmix`
    """
    features, losses = _features(params, "params"), jnp.asarray(losses)
    queries = _features(candidates, "candidates")
    _check_like(candidates, params, "candidates")
    _check_losses(losses, len(features), "losses")
    if not 1 <= top <= len(queries):
        raise ValueError(f"Expected top in 1, ..., {len(queries)}, got top={top}.")
    unseen = None
    if held_out is not None:
        _check_like(held_out[0], params, "held_out[0]")
        tests, unseen = _features(held_out[0], "held_out[0]"), jnp.asarray(held_out[1])
        _check_losses(unseen, len(tests), "held_out[1]")
        queries = jnp.concatenate([queries, tests])

    call = functools.partial(_fit_and_predict, regressor)
    if any(isinstance(x, Tracer) for x in (features, losses, queries)):
        shape = jax.ShapeDtypeStruct((len(queries),), features.dtype)
        predicted = jax.pure_callback(
            call, shape, features, losses, queries, vmap_method="sequential"
        )
    else:
        predicted = jnp.asarray(call(features, losses, queries))
    correlation = jnp.asarray(jnp.nan, predicted.dtype)
    if unseen is not None:
        split = len(queries) - len(unseen)
        correlation = _spearman(predicted[split:], unseen.astype(predicted.dtype))
        predicted = predicted[:split]
    best = jax.lax.top_k(-predicted, top)[1]
    mean = jax.tree.map(lambda leaf: jnp.mean(jnp.asarray(leaf)[best], axis=0), candidates)
    return RegressionSearch(mean, best, predicted, correlation)


def _fit_and_predict(regressor: Any, features: Any, losses: Any, queries: Any) -> np.ndarray:
    """What a regressor fitted on the host predicts."""
    x, y, z = (np.asarray(a) for a in (features, losses, queries))
    if regressor is None:
        try:
            from sklearn.ensemble import HistGradientBoostingRegressor
        except ImportError as error:
            raise ImportError(
                "regression_search without a regressor needs scikit-learn: "
                "pip install 'gradkin[data]'."
            ) from error
        # Its leaves of twenty would not split fewer than forty runs: all predictions are one.
        leaf = min(20, max(1, len(x) // 5))
        regressor = HistGradientBoostingRegressor(min_samples_leaf=leaf, random_state=0)
    regressor.fit(x, y)
    predicted = np.asarray(regressor.predict(z))
    if predicted.shape != (len(z),):
        raise ValueError(
            f"Expected regressor.predict to give shape ({len(z)},), got {predicted.shape}."
        )
    return predicted.astype(x.dtype)


def _features(tree: PyTree, name: str) -> Array:
    """All leaves side by side: ``[n, k]``."""
    leaves = [jnp.asarray(leaf) for leaf in jax.tree.leaves(tree)]
    rows = {leaf.shape[0] if leaf.ndim else 0 for leaf in leaves}
    if len(rows) != 1 or 0 in rows:
        raise ValueError(
            f"Expected {name} with leaves of one leading axis, got shapes "
            f"{[leaf.shape for leaf in leaves]}."
        )
    dtype = jnp.result_type(float)
    return jnp.concatenate([leaf.reshape(len(leaf), -1).astype(dtype) for leaf in leaves], axis=1)


def _check_like(tree: PyTree, params: PyTree, name: str) -> None:
    """Raise ValueError unless rows of both are alike."""
    row = lambda t: jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(np.shape(leaf)[1:], np.int8), t)
    checks.same_structure(row(tree), row(params), name=name, like_name="params")


def _check_losses(losses: Array, size: int, name: str) -> None:
    """Raise ValueError unless there is a finite loss for each run."""
    if losses.shape != (size,):
        raise ValueError(f"Expected {name} of shape ({size},), got {losses.shape}.")
    if checks.is_concrete(losses) and not np.all(np.isfinite(np.asarray(losses))):
        raise ValueError(f"Expected {name} to be finite, got NaN or infinity.")


def _spearman(a: Array, b: Array) -> Array:
    """Correlation of ranks, equal numbers sharing theirs; NaN where all of one are equal."""

    def ranks(x):
        ordered = jnp.sort(x)
        below, upto = (jnp.searchsorted(ordered, x, side=side) for side in ("left", "right"))
        return (below + upto).astype(a.dtype) - len(x)

    a, b = ranks(a), ranks(b)
    return jnp.sum(a * b) / jnp.sqrt(jnp.sum(a**2) * jnp.sum(b**2))
