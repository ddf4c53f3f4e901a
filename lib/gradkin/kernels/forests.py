"""Forests as smoothers: the weight of every training outcome in a tree ensemble's predictions.

A tree predicts the mean outcome of a leaf, so an ensemble of trees predicts ``S @ y`` for a matrix
of weights that depends on nothing but who shares leaves with whom. Trees are grown elsewhere (by
scikit-learn, say); here they are the leaf numbers that ``forest.apply(x)`` returns, ``[n, trees]``.
"""

import dataclasses
import functools
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from gradkin import checks
from gradkin.matrices.kernel import KernelMatrix, kernel_matrix
from gradkin.pytrees import register_dataclass
from gradkin.typing import Array, ArrayLike, Scalar

# Leaves are compared as float32, which counts no further.
MOST_POINTS = 2**24


@functools.partial(register_dataclass, data_fields=[], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class SharedLeaves:
    """``k(x, y) = mean_t a_t(x) b_t(y) 1[leaf_t(x) = leaf_t(y)]``: the trees that two points share.

    A point is ``[trees, 2]``: its leaf in every tree, and a factor for every tree. With factors of
    one it is the random forest's proximity, symmetric and positive semidefinite.

    Example:
      >>> import jax.numpy as jnp
      >>> from gradkin import kernels
      >>> one, two = jnp.array([[3.0, 1.0], [5.0, 1.0]]), jnp.array([[3.0, 1.0], [4.0, 1.0]])
      >>> float(kernels.SharedLeaves()(one, two))
      0.5

    References:
      Scornet (2016), "Random Forests and Kernel Methods", arXiv:1502.03836. :cite:`scornet:16`
    """

    symmetric: ClassVar[bool] = True

    def __call__(self, x: ArrayLike, y: ArrayLike) -> Array:
        return self.tile(jnp.asarray(x)[None], jnp.asarray(y)[None])[0, 0]

    def tile(self, X: Array, Y: Array) -> Float[Array, "n m"]:
        def tree(x: Array, y: Array) -> Array:
            same = x[:, None, 0] == y[None, :, 0]
            return x[:, None, 1] * jnp.where(same, y[None, :, 1], 0)

        # One tree after the other: all at once would be an array [n, m, trees].
        xs, ys = jnp.moveaxis(X, 1, 0), jnp.moveaxis(Y, 1, 0)
        first = tree(xs[0], ys[0])
        add = lambda total, pair: (total + tree(*pair), None)
        return jax.lax.scan(add, first, (xs[1:], ys[1:]))[0] / X.shape[1]

    def check(self, shape: tuple[int, ...]) -> None:
        if len(shape) != 2 or shape[1] != 2 or shape[0] < 1:
            raise ValueError(f"Expected points of shape (trees, 2), got points of shape {shape}.")


def forest_kernel(leaves: ArrayLike, *, query: ArrayLike | None = None) -> KernelMatrix:
    """Share of the trees in which two points fall into the same leaf: a forest's own similarity.

    Positive semidefinite with a diagonal of ones; everything that reads a kernel matrix takes it.

    Args:
      leaves: ``[n, trees]`` integers, ``forest.apply(x)``.
      query: ``[q, trees]``; None for the points among themselves.

    Returns:
      ``[n, n]``, or ``[q, n]``, as a lazy matrix.

    Raises:
      ValueError: not two axes, different numbers of trees, or fractional leaf numbers.

    Example:
      >>> import numpy as np
      >>> from gradkin import kernels
      >>> leaves = np.array([[1, 1], [1, 2], [3, 2]])  # three points, two trees
      >>> kernels.forest_kernel(leaves).materialize().tolist()
      [[1.0, 0.5, 0.0], [0.5, 1.0, 0.5], [0.0, 0.5, 1.0]]

    References:
      Scornet (2016), "Random Forests and Kernel Methods", arXiv:1502.03836. :cite:`scornet:16`
    """
    labels, query_labels = labelled(leaves, leaves if query is None else query)
    points = featured(labels, jnp.ones_like(labels, float))
    if query is None:
        return kernel_matrix(SharedLeaves(), points)
    return kernel_matrix(
        SharedLeaves(), featured(query_labels, jnp.ones_like(query_labels, float)), points
    )


def forest_smoother(
    leaves: ArrayLike, query: ArrayLike, *, counts: ArrayLike | None = None
) -> KernelMatrix:
    """Weights ``S`` with which a tree or forest averages outcomes (Curth et al. 2024, sec. 2).

    .. math:: s_i(x) = \\frac{1}{T} \\sum_t \\frac{w_{ti}\\, 1[\\ell_t(x_i) = \\ell_t(x)]}
        {\\sum_j w_{tj}\\, 1[\\ell_t(x_j) = \\ell_t(x)]}

    ``S @ y`` are the forest's predictions. Rows are non-negative and sum to one.

    Args:
      leaves: leaf of every training point in every tree, ``[n, trees]``; what ``forest.apply(x)``
        returns. The first ``t`` columns are the forest of the first ``t`` trees.
      query: leaf of every point where the forest predicts, ``[q, trees]``.
      counts: how often a tree drew a training point, ``[n, trees]``, see `bootstrap_counts`; None
        where every tree has seen every point once.

    Returns:
      ``S [q, n]``, a lazy matrix in O((n + q) trees) memory.

    Raises:
      ValueError: numbers of trees or points that differ, fractional leaf numbers, negative counts,
        or a query's leaf that holds no training point (under a transformation its row is NaN).

    Example:
      >>> import numpy as np
      >>> from gradkin import kernels
      >>> leaves = np.array([[1], [1], [2]])
      >>> S = kernels.forest_smoother(leaves, np.array([[1], [2]]))
      >>> S.materialize().tolist()
      [[0.5, 0.5, 0.0], [0.0, 0.0, 1.0]]

    References:
      Curth, Jeffares & van der Schaar (2024), "Why do Random Forests Work? Understanding Tree
      Ensembles as Self-Regularizing Adaptive Smoothers", arXiv:2402.01502.
      :cite:`forests-as-smoothers`

    Note:
      A classification forest is a smoother of the one-hot labels where its trees' frequencies are
      averaged, as scikit-learn does, not where they vote. The splits depend on the outcomes, so
      ``S`` is not fixed when these are drawn again.
    """
    labels, query_labels = labelled(leaves, query)
    counts = counted(counts, labels)
    masses = leaf_masses(labels, counts)
    found = jnp.take_along_axis(masses, query_labels, axis=0)
    check_reached(found)
    return kernel_matrix(
        SharedLeaves(), featured(query_labels, inverse(found)), featured(labels, counts)
    )


class BoostingSmoother(NamedTuple):
    """Weights of the training outcomes in the predictions of boosted trees.

    Attributes:
      train: ``[n, n]``, of the predictions for the training points.
      query: ``[q, n]``, of those for the query points.
    """

    train: Float[Array, "n n"]
    query: Float[Array, "q n"]


def boosting_smoother(
    leaves: ArrayLike,
    query: ArrayLike,
    *,
    learning_rate: Scalar | ArrayLike,
    counts: ArrayLike | None = None,
    initial: str | BoostingSmoother = "zero",
) -> BoostingSmoother:
    """Weights ``S`` of gradient boosting with the squared loss (Curth et al. 2024, sec. 2).

    Each tree smooths the residuals of those before it, ``(I - S_{t-1}) y``:

    .. math:: S_t = S_{t-1} + \\nu\\, P_t\\, (I - S_{t-1}^{\\mathrm{train}})

    with ``P_t`` the smoother of tree ``t``. ``S @ y`` are the predictions; rows may be negative and
    need not sum to one. Fully grown trees give ``S_train = (1 - (1 - nu)^t) I``.

    Args:
      leaves: leaf of every training point in every tree, ``[n, trees]``.
      query: leaf of every query point in every tree, ``[q, trees]``.
      learning_rate: ``nu``, or one for every tree, ``[trees]``; zeros from tree ``t`` on give the
        weights after ``t`` trees.
      counts: how often a tree has seen a training point, ``[n, trees]`` (zeros and ones for
        stochastic boosting); None where each has seen all.
      initial: ``"zero"``; ``"mean"`` where boosting starts from the mean outcome, as scikit-learn
        does unless ``init="zero"``; or the weights after the trees before these.

    Returns:
      `BoostingSmoother`; O(n (n + q)) memory and as much time for every tree.

    Raises:
      ValueError: as `forest_smoother`; learning rates of another length; unknown ``initial``, or
        one of other shapes.

    Example:
      >>> import numpy as np
      >>> from gradkin import kernels
      >>> leaves = np.array([[1, 1], [2, 2]])  # two trees that separate two points
      >>> S = kernels.boosting_smoother(leaves, np.array([[1, 2]]), learning_rate=0.5)
      >>> S.train.tolist(), S.query.tolist()
      ([[0.75, 0.0], [0.0, 0.75]], [[0.5, 0.25]])

    References:
      Curth, Jeffares & van der Schaar (2024), arXiv:2402.01502. :cite:`forests-as-smoothers`
    """
    labels, query_labels = labelled(leaves, query)
    counts = counted(counts, labels)
    masses = leaf_masses(labels, counts)
    check_reached(jnp.take_along_axis(masses, query_labels, axis=0))
    check_reached(jnp.take_along_axis(masses, labels, axis=0), name="leaves")
    (n, trees), q = labels.shape, len(query_labels)
    rates = jnp.asarray(learning_rate).astype(counts.dtype)
    if rates.shape not in ((), (trees,)):
        raise ValueError(
            f"Expected learning_rate to be a scalar or to have the {trees} trees, got "
            f"learning_rate.shape={rates.shape}."
        )

    def add(smoother: BoostingSmoother, tree: Any) -> tuple[BoostingSmoother, None]:
        label, query_label, count, mass, rate = tree
        residual = jnp.eye(n, dtype=count.dtype) - smoother.train
        sums = jax.ops.segment_sum(count[:, None] * residual, label, num_segments=n + 1)
        means = rate * sums * inverse(mass)[:, None]
        return BoostingSmoother(
            smoother.train + means[label], smoother.query + means[query_label]
        ), None

    if not isinstance(initial, BoostingSmoother):
        checks.one_of(("zero", "mean"), initial=initial)
        start = 0.0 if initial == "zero" else 1 / n
        initial = BoostingSmoother(
            jnp.full((n, n), start, counts.dtype), jnp.full((q, n), start, counts.dtype)
        )
    shapes = initial.train.shape, initial.query.shape
    if shapes != ((n, n), (q, n)):
        raise ValueError(f"Expected initial of shapes {((n, n), (q, n))}, got {shapes}.")
    each = (labels.T, query_labels.T, counts.T, masses.T, jnp.broadcast_to(rates, (trees,)))
    return jax.lax.scan(add, initial, each)[0]


def bootstrap_counts(forest: Any, num_examples: int) -> Float[np.ndarray, "n trees"]:
    """How often every tree of a fitted scikit-learn ensemble drew every training point.

    Args:
      forest: a fitted ``RandomForest*``, ``ExtraTrees*`` or ``Bagging*``: anything with
        ``estimators_samples_``.
      num_examples: the number of training points.

    Returns:
      ``[num_examples, trees]``, the ``counts`` of `forest_smoother`; ones without bootstrap.

    Raises:
      TypeError: the ensemble does not tell its samples.
      ValueError: it was fitted on another number of points.

    Example:
      >>> import numpy as np
      >>> from sklearn.ensemble import RandomForestRegressor
      >>> from gradkin import kernels
      >>> x, y = np.arange(6.0)[:, None], np.arange(6.0)
      >>> forest = RandomForestRegressor(3, random_state=0).fit(x, y)
      >>> kernels.bootstrap_counts(forest, 6).sum(0).tolist()
      [6.0, 6.0, 6.0]

    References:
      Curth, Jeffares & van der Schaar (2024), arXiv:2402.01502. :cite:`forests-as-smoothers`

    Note:
      A ``sample_weight`` given to ``fit`` is not part of the counts: multiply by it where it
      weights the leaf means (scikit-learn before 1.8; later it biases the draw instead).
    """
    if not hasattr(forest, "estimators_samples_"):
        raise TypeError(
            f"Expected forest to have estimators_samples_, got a {type(forest).__name__}."
        )
    samples = [np.asarray(rows) for rows in forest.estimators_samples_]
    fitted = getattr(forest, "_n_samples", num_examples)
    if fitted != num_examples or max(rows.max() for rows in samples) >= num_examples:
        raise ValueError(
            f"Expected num_examples to be the forest's {fitted} training points, got "
            f"num_examples={num_examples}."
        )
    counts = [np.bincount(rows, minlength=num_examples) for rows in samples]
    return np.stack(counts, axis=1).astype(np.float32)


def labelled(leaves: ArrayLike, query: ArrayLike) -> tuple[Array, Array]:
    """Leaves renamed to training points that are in them; ``n`` for a leaf without any."""
    named = {"leaves": leaves, "query": query}
    checks.rank(2, **named)
    (n, trees), (_, query_trees) = np.shape(leaves), np.shape(query)
    if trees != query_trees or trees < 1:
        raise ValueError(
            f"Expected leaves and query of one number of trees, got leaves.shape="
            f"{np.shape(leaves)} and query.shape={np.shape(query)}."
        )
    if not 1 <= n < MOST_POINTS:
        raise ValueError(f"Expected 1 to {MOST_POINTS - 1} training points, got {n}.")
    for name, value in named.items():
        if checks.is_concrete(value):
            host = np.asarray(value)
            # scikit-learn's boosting tells its leaves as floats.
            if not np.array_equal(host, np.round(host)):
                raise ValueError(f"Expected whole numbers in {name}, got dtype {host.dtype}.")

    def tree(ids: Array, query_ids: Array) -> tuple[Array, Array]:
        ordered = jnp.sort(ids)
        at = jnp.searchsorted(ordered, query_ids)
        known = ordered[jnp.minimum(at, n - 1)] == query_ids
        return jnp.searchsorted(ordered, ids), jnp.where(known, at, n)

    ids, query_ids = (jnp.asarray(value).astype(int) for value in named.values())
    return jax.vmap(tree, in_axes=1, out_axes=1)(ids, query_ids)


def counted(counts: ArrayLike | None, labels: Array) -> Array:
    """The counts as floats, ones by default."""
    if counts is None:
        return jnp.ones_like(labels, float)
    if np.shape(counts) != labels.shape:
        raise ValueError(
            f"Expected counts to have the shape of leaves, {labels.shape}, got counts.shape="
            f"{np.shape(counts)}."
        )
    checks.non_negative(counts=counts)
    return jnp.asarray(counts).astype(float)


def leaf_masses(labels: Array, counts: Array) -> Array:
    """Sum of the counts in every leaf of every tree, ``[n + 1, trees]``; zero in the last row."""
    total = functools.partial(jax.ops.segment_sum, num_segments=len(labels) + 1)
    return jax.vmap(total, in_axes=1, out_axes=1)(counts, labels)


def check_reached(masses: Array, name: str = "query") -> None:
    """Raise ValueError where a leaf that is asked for has no training point to average."""
    if checks.is_concrete(masses) and np.any(np.asarray(masses) == 0):
        point, tree = np.argwhere(np.asarray(masses) == 0)[0]
        raise ValueError(
            f"Expected every leaf of {name} to hold a training point, but that of row {point} in "
            f"tree {tree} holds none."
        )


def inverse(mass: Array) -> Array:
    """``1 / mass``; NaN where there is none, because nothing is averaged there."""
    empty = mass == 0
    return jnp.where(empty, jnp.nan, 1 / jnp.where(empty, 1, mass))


def featured(labels: Array, factors: Array) -> Array:
    """Points of `SharedLeaves`: ``[points, trees, 2]``."""
    return jnp.stack([labels.astype(factors.dtype), factors], axis=-1)
