"""Tversky similarity: objects as sets of learned features, compared by what they share."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float

from gradkin import checks
from gradkin.similarity.features import sum_over_features
from gradkin.typing import Array, PRNGKey, Scalar

MODELS = ("contrast", "ratio")
INTERSECTIONS = ("product", "min", "max", "mean", "gmean", "softmin")
DIFFERENCES = ("ignorematch", "subtractmatch")
AGGREGATES = ("feature", "sum")
INITIALIZERS = ("uniform", "normal")


class TverskyParams(NamedTuple):
    """Parameters of a Tversky projection.

    A bank or prototypes shared with another layer are put in with ``_replace``.

    Attributes:
      prototypes: ``[out, d]``, what inputs are compared with: one for each output.
      bank: ``[K, d]``, the features; an object has those it has a positive inner product with.
      alpha: weight of what only the input has.
      beta: weight of what only the prototype has.
      theta: weight of what both have; the ratio model does not use it.
    """

    prototypes: Array
    bank: Array
    alpha: Array
    beta: Array
    theta: Array


def feature_sets(
    x: Float[Array, "n d"], bank: Float[Array, "K d"], *, threshold: Scalar = 0.0
) -> Bool[Array, "n K"]:
    """Which features an object has: those with ``<x, f_k> > threshold`` (Doumbouya et al. 2025).

    Args:
      x: ``[n, d]``, the objects.
      bank: ``[K, d]``, the features.
      threshold: >= 0, what an inner product must exceed.

    Returns:
      ``[n, K]``. A column without True is a dead feature: it gets no gradient from these objects.

    Raises:
      ValueError: an empty bank, sizes that differ, a negative threshold.

    Example:
      >>> import jax.numpy as jnp
      >>> from gradkin import similarity
      >>> similarity.feature_sets(jnp.array([[1.0, -1.0]]), jnp.eye(2)).tolist()
      [[True, False]]

    References:
      Doumbouya et al. (2025), "Tversky Neural Networks", arXiv:2506.11035.
      :cite:`tversky-networks`
    """
    return measures(bank, threshold, x=x) > 0


def salience(
    x: Float[Array, "n d"], bank: Float[Array, "K d"], *, threshold: Scalar = 0.0
) -> Float[Array, " n"]:
    """How much there is to an object: the sum of its features' measures (Doumbouya et al. 2025).

    .. math:: f(X) = \\sum_k \\langle x, f_k \\rangle\\, 1[\\langle x, f_k \\rangle > t]

    Args:
      x: ``[n, d]``, the objects.
      bank: ``[K, d]``, the features.
      threshold: >= 0, what an inner product must exceed.

    Returns:
      ``[n]``, not negative.

    Raises:
      ValueError: as `feature_sets`.

    Example:
      >>> import jax.numpy as jnp
      >>> from gradkin import similarity
      >>> similarity.salience(jnp.array([[1.0, -1.0], [2.0, 3.0]]), jnp.eye(2)).tolist()
      [1.0, 5.0]

    References:
      Doumbouya et al. (2025), arXiv:2506.11035. :cite:`tversky-networks`
    """
    return jnp.sum(measures(bank, threshold, x=x), axis=1)


def tversky_similarity(
    a: Float[Array, "n d"],
    b: Float[Array, "m d"],
    bank: Float[Array, "K d"],
    *,
    alpha: Scalar = 0.5,
    beta: Scalar = 0.5,
    theta: Scalar = 1.0,
    model: str = "contrast",
    intersection: str = "product",
    difference: str = "ignorematch",
    aggregate: str = "feature",
    threshold: Scalar = 0.0,
    normalize: bool = False,
    smoothing: Scalar = 0.0,
) -> Float[Array, "n m"]:
    """Similarity of objects as sets of learned features (Doumbouya et al. 2025; Tversky 1977).

    With ``a_k = <a, f_k>``, and A the features whose ``a_k`` exceeds the threshold,

    .. math::
        S_{contrast}(a, b) &= \\theta f(A \\cap B) - \\alpha f(A - B) - \\beta f(B - A) \\\\
        S_{ratio}(a, b) &= \\frac{f(A \\cap B)}
            {f(A \\cap B) + \\alpha f(A - B) + \\beta f(B - A) + smoothing}

    where :math:`f(A \\cap B)` sums ``intersection(a_k, b_k)`` over the features of both, and
    :math:`f(A - B)` sums ``a_k`` over the features of A only; "subtractmatch" adds the excess
    ``max(a_k - b_k, 0)`` of the features of both.

    Args:
      a: ``[n, d]``, the objects compared.
      b: ``[m, d]``, what they are compared with.
      bank: ``[K, d]``, the features.
      alpha: weight of what only ``a`` has; of any sign. Differs from ``beta`` where "a is like b"
        is not "b is like a".
      beta: weight of what only ``b`` has.
      theta: weight of what both have, in the contrast model.
      model: "contrast" or "ratio".
      intersection: how a common feature counts: "product", "min", "max", "mean", "gmean" (the
        geometric mean) or "softmin" (``-log(exp(-a_k) + exp(-b_k))``, below the minimum by up to
        log 2 and possibly negative).
      difference: "ignorematch" or "subtractmatch".
      aggregate: "feature" reduces each feature and sums; "sum" sums over the common features on
        either side and then reduces the two sums, as the authors' library does.
      threshold: >= 0, what an inner product must exceed.
      normalize: whether to divide ``a`` and ``b`` (not the bank) by their norms; zero stays zero.
      smoothing: added to the ratio's denominator; the authors' library adds 1.

    Returns:
      ``[n, m]``. Nothing in common is 0 in the ratio model, also between empty sets. A ratio whose
      denominator is 0, which negative weights allow, is 0.

    Raises:
      ValueError: an unknown option, an empty bank, sizes that differ, a negative threshold.

    Example:
      Two objects with the features {0, 1} and {1, 2}: Jaccard's index is 1/3.

      >>> import jax.numpy as jnp
      >>> from gradkin import similarity
      >>> a, b = jnp.array([[1.0, 1.0, 0.0]]), jnp.array([[0.0, 1.0, 1.0]])
      >>> options = dict(model="ratio", intersection="min", alpha=1.0, beta=1.0)
      >>> round(float(similarity.tversky_similarity(a, b, jnp.eye(3), **options)[0, 0]), 4)
      0.3333

    References:
      Doumbouya et al. (2025), "Tversky Neural Networks: Psychologically Plausible Deep Learning
      with Differentiable Tversky Similarity", arXiv:2506.11035. :cite:`tversky-networks`

    Note:
      The authors' library spells "substractmatch". With "min", "max", "gmean", "softmin" or that
      difference it computes ``aggregate="sum"``, which is not the equation of the paper; the
      geometric mean of an empty intersection has a NaN gradient there and a zero one here.
      Everything but "min", "max", "softmin" and "subtractmatch" is a few matrix products.
      Membership has no gradient: a feature that no object has is never learned.
    """
    checks.one_of(MODELS, model=model)
    checks.one_of(INTERSECTIONS, intersection=intersection)
    checks.one_of(DIFFERENCES, difference=difference)
    checks.one_of(AGGREGATES, aggregate=aggregate)
    checks.non_negative(smoothing=smoothing)
    if normalize:
        a, b = unit(a), unit(b)
    a, b = measures(bank, threshold, a=a), measures(bank, threshold, b=b)
    per_feature = aggregate == "feature"
    common = (common_of_features if per_feature else common_of_sums)(a, b, intersection)
    subtract = difference == "subtractmatch"
    only_a, only_b = (distinctive_features if per_feature else distinctive_sums)(a, b, subtract)
    alpha, beta, theta, smoothing = (
        jnp.asarray(value).astype(common.dtype) for value in (alpha, beta, theta, smoothing)
    )
    if model == "contrast":
        return theta * common - alpha * only_a - beta * only_b
    return ratio(common, common + alpha * only_a + beta * only_b + smoothing)


def init_tversky(
    key: PRNGKey,
    *,
    features_in: int,
    features_out: int,
    bank_size: int,
    init: str = "uniform",
    dtype: Any = np.float32,
) -> TverskyParams:
    """Initial parameters of a Tversky projection (Doumbouya et al. 2025).

    Args:
      key: a PRNG key.
      features_in: ``d >= 1``, the width of the inputs.
      features_out: >= 1, the number of prototypes.
      bank_size: ``K >= 1``, the number of features.
      init: "uniform" is U[0, 1), as in the authors' library, with which inputs that are not
        negative have nearly every feature; "normal" has variance ``1 / d``, with which they have
        about half.
      dtype: of the parameters.

    Returns:
      `TverskyParams` with alpha = beta = 1/2 and theta = 1: ``(K + out) d + 3`` numbers.

    Raises:
      ValueError: a size below 1 or an unknown ``init``.

    Example:
      >>> import jax
      >>> from gradkin import similarity
      >>> options = dict(features_in=2, features_out=2, bank_size=2)
      >>> params = similarity.init_tversky(jax.random.key(0), **options)
      >>> sum(leaf.size for leaf in params)
      11

    References:
      Doumbouya et al. (2025), arXiv:2506.11035. :cite:`tversky-networks`
    """
    checks.one_of(INITIALIZERS, init=init)
    checks.positive(features_in=features_in, features_out=features_out, bank_size=bank_size)
    keys = jax.random.split(key)
    shapes = (features_out, features_in), (bank_size, features_in)
    if init == "uniform":
        prototypes, bank = (jax.random.uniform(k, s, dtype) for k, s in zip(keys, shapes))
    else:
        scale = jnp.asarray(features_in**-0.5, dtype)
        prototypes, bank = (scale * jax.random.normal(k, s, dtype) for k, s in zip(keys, shapes))
    half, one = jnp.asarray(0.5, dtype), jnp.asarray(1.0, dtype)
    return TverskyParams(prototypes, bank, alpha=half, beta=half, theta=one)


def tversky_projection(
    params: TverskyParams, x: Float[Array, "*batch d"], **options: Any
) -> Float[Array, "*batch out"]:
    """Compare inputs with learned prototypes: a linear layer's successor (Doumbouya et al. 2025).

    .. math:: out_j = S(x, \\pi_j)

    Not linear: one such layer of eleven numbers computes exclusive or.

    Args:
      params: prototypes, bank and weights; see `init_tversky`.
      x: ``[..., d]``, the inputs.
      options: ``model``, ``intersection``, ``difference``, ``aggregate``, ``threshold``,
        ``normalize``, ``smoothing`` of `tversky_similarity`.

    Returns:
      ``[..., out]``. The contrast model's scores grow with ``K`` and ``d``: scale or normalize
      before a softmax.

    Raises:
      ValueError: as `tversky_similarity`.

    Example:
      >>> import jax.numpy as jnp
      >>> from gradkin import similarity
      >>> params = similarity.TverskyParams(
      ...     prototypes=jnp.array([[1.0, 0.0], [0.0, 2.0]]),
      ...     bank=jnp.array([[1.0, -1.0], [-1.0, 1.0]]),
      ...     alpha=-4.5, beta=1.0, theta=2.0)
      >>> x = jnp.array([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
      >>> similarity.tversky_projection(params, x).argmax(-1).tolist()
      [0, 1, 1, 0]

    References:
      Doumbouya et al. (2025), arXiv:2506.11035. :cite:`tversky-networks`
    """
    rows = x.reshape(-1, x.shape[-1])
    scores = tversky_similarity(
        rows,
        params.prototypes,
        params.bank,
        alpha=params.alpha,
        beta=params.beta,
        theta=params.theta,
        **options,
    )
    return scores.reshape(*x.shape[:-1], -1)


def nnx_tversky_projection(
    params: TverskyParams, *, prototypes: Any = None, bank: Any = None, **options: Any
) -> Any:
    """The Tversky projection as a Flax NNX module (Doumbouya et al. 2025).

    Args:
      params: the initial parameters; ``module.params()`` gives the current ones back.
      prototypes: an ``nnx.Param`` of another layer to share, such as a token embedding, instead of
        ``params.prototypes``.
      bank: an ``nnx.Param`` of another layer to share, instead of ``params.bank``.
      options: those of `tversky_projection`.

    Returns:
      An ``nnx.Module`` that maps ``[..., d]`` to ``[..., out]``.

    Raises:
      ImportError: where flax is not installed.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from gradkin import similarity
      >>> sizes = dict(features_in=4, features_out=3, bank_size=8)
      >>> params = similarity.init_tversky(jax.random.key(0), **sizes)
      >>> similarity.nnx_tversky_projection(params, normalize=True)(jnp.ones((2, 5, 4))).shape
      (2, 5, 3)

    References:
      Doumbouya et al. (2025), arXiv:2506.11035. :cite:`tversky-networks`
    """
    from gradkin.similarity.tversky_nnx import TverskyProjection

    return TverskyProjection(params, prototypes=prototypes, bank=bank, **options)


def measures(bank: Array, threshold: Scalar, **objects: Array) -> Array:
    """``<x, f_k>`` where it exceeds the threshold, else 0: ``[n, K]``, never negative."""
    ((name, x),) = objects.items()
    checks.rank(2, **objects, bank=bank)
    if len(bank) == 0:
        raise ValueError(f"Expected a bank of at least one feature, got bank.shape={bank.shape}.")
    if x.shape[1] != bank.shape[1]:
        raise ValueError(
            f"Expected {name} and bank of one width, got {name}.shape={x.shape} and "
            f"bank.shape={bank.shape}."
        )
    checks.non_negative(threshold=threshold)
    products = x @ bank.T
    # Not the other way round: NaN stays NaN.
    return jnp.where(products <= jnp.asarray(threshold).astype(products.dtype), 0, products)


def unit(x: Array) -> Array:
    """Rows of norm one; a zero row stays zero, with a zero derivative."""
    squares = jnp.sum(jnp.square(x), axis=1, keepdims=True)
    zero = squares == 0
    return jnp.where(zero, 0, x * jax.lax.rsqrt(jnp.where(zero, 1, squares)))


def among(x: Array) -> Array:
    """Indicator of a set, in the dtype of its measures."""
    return (x > 0).astype(x.dtype)


def sum_of_minima(a: Array, b: Array) -> Array:
    """``sum_k min(a_ik, b_jk)``, of measures that are 0 outside the sets."""
    return sum_over_features(jnp.minimum, a, b)


def common_of_features(a: Array, b: Array, intersection: str) -> Array:
    """``f(A n B)`` where each feature is reduced by itself."""
    match intersection:
        case "product":
            return a @ b.T
        case "gmean":
            return root(a) @ root(b).T
        case "min":
            return sum_of_minima(a, b)
        case "softmin":
            return sum_over_features(softmin_inside, a, b)
    total = a @ among(b).T + among(a) @ b.T
    # The larger of two numbers is their sum without the smaller.
    return total / 2 if intersection == "mean" else total - sum_of_minima(a, b)


def common_of_sums(a: Array, b: Array, intersection: str) -> Array:
    """``f(A n B)`` where the sums over the common features are reduced."""
    if intersection == "product":
        return a @ b.T
    of_a, of_b = a @ among(b).T, among(a) @ b.T
    match intersection:
        case "min":
            return jnp.minimum(of_a, of_b)
        case "max":
            return jnp.maximum(of_a, of_b)
        case "mean":
            return (of_a + of_b) / 2
        case "gmean":
            return root(of_a) * root(of_b)
    return -jnp.logaddexp(-of_a, -of_b)


def distinctive_features(a: Array, b: Array, subtract: bool) -> tuple[Array, Array]:
    """``f(A - B)`` and ``f(B - A)`` where each feature is reduced by itself."""
    if not subtract:
        return a @ (1 - among(b)).T, (1 - among(a)) @ b.T
    # Missing features and excesses together are what the minimum leaves of a set.
    shared = sum_of_minima(a, b)
    return jnp.sum(a, axis=1)[:, None] - shared, jnp.sum(b, axis=1)[None, :] - shared


def distinctive_sums(a: Array, b: Array, subtract: bool) -> tuple[Array, Array]:
    """``f(A - B)`` and ``f(B - A)`` where the sums over the common features are reduced."""
    only_a, only_b = distinctive_features(a, b, False)
    if not subtract:
        return only_a, only_b
    excess = a @ among(b).T - among(a) @ b.T
    return only_a + jax.nn.relu(excess), only_b + jax.nn.relu(-excess)


def softmin_inside(a: Array, b: Array) -> Array:
    """A smooth minimum of two measures where both are positive, else 0."""
    return jnp.where((a > 0) & (b > 0), -jnp.logaddexp(-a, -b), 0)


def root(x: Array) -> Array:
    """Square root of what is not negative; its derivative at 0 is 0."""
    zero = x == 0
    return jnp.where(zero, 0, jnp.sqrt(jnp.where(zero, 1, x)))


def ratio(a: Array, b: Array) -> Array:
    """``a / b``; 0 where ``b`` is 0, and a zero derivative there."""
    zero = b == 0
    return jnp.where(zero, 0, a / jnp.where(zero, 1, b))
