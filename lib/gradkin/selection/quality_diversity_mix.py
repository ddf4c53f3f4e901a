"""QuaDMix: how often each document is drawn, by its quality and by its domain."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Float, Int, Num

from gradkin import checks
from gradkin.matrices.floating import floating
from gradkin.typing import Array, ArrayLike, PRNGKey

NORMS = ("quantile", "zscore", "minmax", "none")
PRIORS = ("wide", "paper")
# Below every rank: nothing of a domain is above the cut.
NONE_ABOVE = float(np.finfo(np.float32).tiny)


class MixParams(NamedTuple):
    """Parameters of QuaDMix: ``M`` domains, ``N`` quality criteria.

    Attributes:
      alpha: ``[M, N]`` >= 0, weights of the criteria in each domain.
      lam: ``[M]`` >= 0, how sharply the preference falls with the rank.
      omega: ``[M]`` in (0, 1], the rank behind which documents count as of low quality.
      eta: ``[M]`` >= 0, how much the best are preferred: at most ``2^eta`` times.
      eps: ``[M]`` >= 0, added for every document, those of low quality too.
    """

    alpha: Array
    lam: Array
    omega: Array
    eta: Array
    eps: Array


def sample_mix_params(
    key: PRNGKey, num_domains: int, num_scores: int, *, prior: str = "wide"
) -> MixParams:
    """Draw parameters of QuaDMix, of which a search tries many (Liu et al. 2025, alg. 1).

    With ``U(a, b)`` uniform and ``logU(a, b)`` uniform in the logarithm:

    ========  =====================  =========================================
    ..        "wide"                 "paper"
    ========  =====================  =========================================
    alpha_m   Dirichlet(1)           ``a * b_m`` over its sum, ``a, b_m ~ U(0, 1)``
    lam       logU(1, 1000)          U(0, 1000)
    omega     logU(0.02, 1)          U(0, 0.1)
    eta       U(0, 3)                U(0, 1)
    eps       logU(0.0001, 0.1)      U(0, 0.001)
    ========  =====================  =========================================

    Args:
      key: PRNG key.
      num_domains: ``M``.
      num_scores: ``N``.
      prior: "wide" or "paper", which prefers the best tenth and so suits small budgets.

    Returns:
      `MixParams`; `jax.vmap` over keys gives many.

    Raises:
      ValueError: a number below 1, or another prior.

    Note:
      "wide" is ours. "paper" was read in an independent implementation of the paper's algorithm 1,
      not in the paper.

    Example:
      >>> import jax
      >>> from gradkin import selection
      >>> params = selection.sample_mix_params(jax.random.key(0), 3, 2)
      >>> params.alpha.shape, params.omega.shape
      ((3, 2), (3,))

    References:
      Liu et al. (2025), "QuaDMix: Quality-Diversity Balanced Data Selection for Efficient LLM
      Pretraining", arXiv:2504.16511. :cite:`quadmix`
    """
    checks.positive(num_domains=num_domains, num_scores=num_scores)
    checks.one_of(PRIORS, prior=prior)
    k = jax.random.split(key, 6)
    of_alpha, shape = (num_domains, num_scores), (num_domains,)
    if prior == "wide":
        alpha = jax.random.exponential(k[0], of_alpha)
        lam, omega, eps = (
            jnp.exp(jax.random.uniform(k_, shape, minval=math.log(low), maxval=math.log(high)))
            for k_, low, high in ((k[1], 1, 1e3), (k[2], 0.02, 1), (k[4], 1e-4, 0.1))
        )
        omega = jnp.minimum(omega, 1)
        eta = jax.random.uniform(k[3], shape, maxval=3)
    else:
        shared = jax.random.uniform(k[5], (1, num_scores), minval=NONE_ABOVE)
        alpha = shared * jax.random.uniform(k[0], of_alpha, minval=NONE_ABOVE)
        lam, omega, eta, eps = (
            high * jax.random.uniform(k_, shape, minval=1e-6)
            for k_, high in ((k[1], 1e3), (k[2], 0.1), (k[3], 1.0), (k[4], 1e-3))
        )
    return MixParams(alpha / jnp.sum(alpha, axis=1, keepdims=True), lam, omega, eta, eps)


def mixture_params(
    weights: Num[ArrayLike, " m"], sizes: Num[ArrayLike, " m"], *, num_scores: int = 1
) -> MixParams:
    """Domain weights without regard to quality, as RegMix has them, as parameters of QuaDMix.

    .. math:: S = \\epsilon_m = w_m / T_m

    Args:
      weights: ``[M]`` >= 0, what each domain contributes to the tokens drawn.
      sizes: ``[M]`` > 0, tokens of each domain, or its share of them.
      num_scores: ``N``; quality has no say.

    Returns:
      `MixParams`, to be scaled by `scale_to_budget`.

    Raises:
      ValueError: lengths that differ, a negative weight, or a size that is not positive.

    Example:
      >>> import jax.numpy as jnp
      >>> from gradkin import selection
      >>> selection.mixture_params(jnp.array([0.75, 0.25]), jnp.array([4.0, 1.0])).eps.tolist()
      [0.1875, 0.25]

    References:
      Liu et al. (2024), "RegMix: Data Mixture as Regression for Language Model Pre-training",
      arXiv:2407.01492. :cite:`liu:24b`
    """
    checks.non_negative(weights=weights)
    checks.positive(sizes=sizes)
    weights, sizes = floating(weights), floating(sizes)
    if weights.shape != sizes.shape:
        raise ValueError(
            f"Expected weights and sizes of one length, got {weights.shape} and {sizes.shape}."
        )
    zero = jnp.zeros_like(weights)
    alpha = jnp.full((len(weights), num_scores), 1 / num_scores, weights.dtype)
    return MixParams(alpha, zero, zero + NONE_ABOVE, zero, weights / sizes.astype(weights.dtype))


def quality_filter_params(
    shares: Num[ArrayLike, " m"], *, alpha: Num[ArrayLike, "m n"] | None = None
) -> MixParams:
    """A threshold of quality in each domain, as parameters of QuaDMix: the best are drawn once.

    Args:
      shares: ``[M]`` in (0, 1], how much of each domain is drawn.
      alpha: ``[M, N]``, weights of the criteria; None for one criterion.

    Returns:
      `MixParams` with ``eta = eps = 0``, by which ``S = 1`` up to the share and 0 behind it.

    Raises:
      ValueError: a share outside (0, 1].

    Example:
      >>> import jax.numpy as jnp
      >>> from gradkin import selection
      >>> params = selection.quality_filter_params(jnp.array([0.5]))
      >>> rank, domain = jnp.array([0.25, 0.5, 0.75, 1.0]), jnp.zeros(4, int)
      >>> selection.sampling_value(rank, domain, params).tolist()
      [1.0, 1.0, 0.0, 0.0]
    """
    shares = floating(shares)
    zero = jnp.zeros_like(shares)
    weights = jnp.ones((len(shares), 1), shares.dtype) if alpha is None else floating(alpha)
    params = MixParams(weights, zero, shares, zero, zero)
    _check_params(params)
    return params


def normalize_scores(
    scores: Num[ArrayLike, "d n"], *, norm: str = "quantile"
) -> Float[Array, "d n"]:
    """Bring quality scores of different criteria to one scale.

    Args:
      scores: ``[D, N]``; integers count as floats.
      norm: "quantile", the share of documents with a smaller score and half of those with the same;
        "zscore", mean 0 and variance 1; "minmax", 0 to 1; or "none".

    Returns:
      ``[D, N]``. A criterion that is the same everywhere becomes 1/2 by "quantile" and 0 by
      "zscore" and "minmax": it has no say.

    Raises:
      ValueError: no documents, another norm, or, where they can be read, scores that are not
        finite.

    Example:
      >>> import jax.numpy as jnp
      >>> from gradkin import selection
      >>> selection.normalize_scores(jnp.array([[1.0], [9.0], [2.0], [2.0]]))[:, 0].tolist()
      [0.125, 0.875, 0.5, 0.5]
    """
    checks.one_of(NORMS, norm=norm)
    scores = floating(scores)
    checks.rank(2, scores=scores)
    if not len(scores):
        raise ValueError(f"Expected at least one document, got scores.shape={scores.shape}.")
    if checks.is_concrete(scores) and not np.all(np.isfinite(np.asarray(scores))):
        raise ValueError("Expected scores to be finite, got NaN or infinity.")
    if norm == "none":
        return scores
    if norm == "quantile":
        return jax.vmap(_quantiles, in_axes=1, out_axes=1)(scores)
    low, spread = jnp.min(scores, axis=0), jnp.ptp(scores, axis=0)
    varies = spread > 0  # of equal numbers a mean may round to another one
    # By the spread first: squares of very small or large deviations leave the range of floats.
    zero = jnp.mean(scores, axis=0) if norm == "zscore" else low
    found = (scores - zero[None]) / jnp.where(varies, spread, 1)[None]
    if norm == "zscore":
        found = found / jnp.where(varies, jnp.std(found, axis=0), 1)[None]
    return jnp.where(varies[None], found, 0)


def merge_quality(
    scores: Num[ArrayLike, "d n"],
    domain: Int[ArrayLike, " d"],
    alpha: Num[ArrayLike, "m n"],
    *,
    norm: str = "quantile",
) -> Float[Array, " d"]:
    """One quality for each document, by the weights of its domain (Liu et al. 2025, eq. 1).

    .. math:: \\bar q(x) = \\sum_n \\sigma(q_n(x))\\, \\alpha_{m(x), n}

    Args:
      scores: ``[D, N]``, all criteria of one orientation.
      domain: ``[D]`` in 0, ..., M - 1.
      alpha: ``[M, N]`` >= 0, no row zero.
      norm: ``sigma``, over all documents; see `normalize_scores`.

    Returns:
      ``[D]``, of the orientation of the scores.

    Raises:
      ValueError: shapes that do not fit, a domain outside its range, a negative weight, a row of
        zeros; as `normalize_scores` does.

    Note:
      Which normalization the paper takes is not known to us.

    Example:
      >>> import jax.numpy as jnp
      >>> from gradkin import selection
      >>> scores, domain = jnp.array([[1.0, 0.0], [0.0, 1.0]]), jnp.array([0, 1])
      >>> alpha = jnp.array([[0.75, 0.25], [0.75, 0.25]])
      >>> selection.merge_quality(scores, domain, alpha, norm="none").tolist()
      [0.75, 0.25]

    References:
      Liu et al. (2025), arXiv:2504.16511, eq. (1). :cite:`quadmix`
    """
    alpha, domain = floating(alpha), jnp.asarray(domain)
    _check_alpha(alpha)
    _check_domain(domain, len(alpha))
    scores = normalize_scores(scores, norm=norm)
    if scores.shape != (len(domain), alpha.shape[1]):
        raise ValueError(
            f"Expected scores of shape {(len(domain), alpha.shape[1])}, one row per document and "
            f"one column per criterion, got scores.shape={scores.shape}."
        )
    return jnp.sum(scores * alpha[domain].astype(scores.dtype), axis=1)


def domain_rank(
    quality: Num[ArrayLike, " d"],
    domain: Int[ArrayLike, " d"],
    *,
    tokens: ArrayLike | None = None,
    higher_is_better: bool = True,
) -> Float[Array, " d"]:
    """Rank of each document within its domain, best first (Liu et al. 2025, eq. 2).

    .. math::
        \\bar r(x) = \\frac{\\sum_{x'} t(x')\\, [x' \\text{ no worse than } x]}{\\sum_{x'} t(x')}
        \\quad \\text{over } x' \\text{ with } m(x') = m(x)

    Args:
      quality: ``[D]``.
      domain: ``[D]``, any integers.
      tokens: ``[D]`` > 0, lengths ``t``; None counts documents.
      higher_is_better: whether a greater number is a better document.

    Returns:
      ``[D]`` in (0, 1]: near 0 is best, whatever the orientation; equal qualities share the rank of
      the last of them. It depends neither on other domains nor, without ``tokens``, on anything but
      the order.

    Raises:
      ValueError: no documents, shapes that differ, or, where they can be read, a length that is
        not positive or a quality of NaN.

    Note:
      The paper writes <=, for criteria where less is better: ``higher_is_better=False``.

    Example:
      >>> import jax.numpy as jnp
      >>> from gradkin import selection
      >>> quality, domain = jnp.array([5.0, 1.0, 9.0, 2.0, 7.0]), jnp.array([0, 0, 0, 1, 0])
      >>> selection.domain_rank(quality, domain).tolist()
      [0.75, 1.0, 0.25, 1.0, 0.5]

    References:
      Liu et al. (2025), arXiv:2504.16511, eq. (2). :cite:`quadmix`
    """
    quality, domain = floating(quality), jnp.asarray(domain)
    lengths = None if tokens is None else jnp.asarray(tokens)
    checks.rank(1, quality=quality)
    size = len(quality)
    if not size:
        raise ValueError("Expected at least one document, got none.")
    for name, value in (("domain", domain), ("tokens", lengths)):
        if value is not None and value.shape != (size,):
            raise ValueError(f"Expected {name} of shape ({size},), got {value.shape}.")
    if lengths is not None:
        checks.positive(tokens=lengths)
    if checks.is_concrete(quality) and np.any(np.isnan(np.asarray(quality))):
        raise ValueError("Expected quality without NaN.")

    order = jnp.lexsort((-quality if higher_is_better else quality, domain))
    d, q = domain[order], quality[order]
    position = jnp.arange(size)
    edge = jnp.ones(1, bool)
    begins = jnp.concatenate([edge, d[1:] != d[:-1]])
    ends = jnp.concatenate([begins[1:], edge])
    ties_end = jnp.concatenate([begins[1:] | (q[1:] != q[:-1]), edge])
    next_of = lambda flags: lax.cummin(jnp.where(flags, position, size), reverse=True)
    if lengths is None:  # exact, however many there are
        upto = position + 1 - lax.cummax(jnp.where(begins, position, 0))
    else:
        upto = _sums_within(begins, lengths[order].astype(quality.dtype))
    rank = (upto[next_of(ties_end)] / upto[next_of(ends)]).astype(quality.dtype)
    return jnp.zeros_like(rank).at[order].set(rank)


def sampling_value(
    rank: Float[ArrayLike, " d"], domain: Int[ArrayLike, " d"], params: MixParams
) -> Float[Array, " d"]:
    """How many copies of each document are drawn on average (Liu et al. 2025, eq. 3).

    .. math::
        S = \\Big( \\frac{2}{1 + e^{-\\lambda_m (\\omega_m - r)}} \\Big)^{\\eta_m}\\,
        [r \\le \\omega_m] + \\epsilon_m

    with the parameters of the document's domain. The shares of the domains follow from them: they
    are not parameters of their own.

    Args:
      rank: ``[D]``, as from `domain_rank`: near 0 is best.
      domain: ``[D]`` in 0, ..., M - 1.
      params: of ``M`` domains.

    Returns:
      ``[D]``. It does not grow with the rank, falls by exactly 1 behind ``omega``, and is below
      ``2^eta + eps`` (equal to it, ``1 + eps``, without ``eta``).

    Raises:
      ValueError: shapes that differ, a domain outside its range, or, where they can be read,
        ranks or parameters outside theirs.

    Example:
      >>> import jax.numpy as jnp
      >>> from gradkin import selection
      >>> one = jnp.ones(1)
      >>> params = selection.MixParams(one[None], 100 * one, 0.5 * one, one, 0.25 * one)
      >>> rank, domain = jnp.array([0.1, 0.5, 0.6]), jnp.zeros(3, int)
      >>> selection.sampling_value(rank, domain, params).tolist()
      [2.25, 1.25, 0.25]

    References:
      Liu et al. (2025), arXiv:2504.16511, eq. (3). :cite:`quadmix`
    """
    rank, domain = floating(rank), jnp.asarray(domain)
    if rank.shape != domain.shape:
        raise ValueError(
            f"Expected rank and domain of one shape, got {rank.shape} and {domain.shape}."
        )
    _check_params(params)
    _check_domain(domain, len(params.omega))
    if checks.is_concrete(rank) and not np.all((np.asarray(rank) >= 0) & (np.asarray(rank) <= 1)):
        raise ValueError("Expected rank in [0, 1], as from domain_rank.")
    lam, omega, eta, eps = (jnp.asarray(leaf)[domain].astype(rank.dtype) for leaf in params[1:])
    # A gap that is never negative: no exponential overflows, and no NaN comes back by `where`.
    gap = jnp.maximum(omega - rank, 0)
    preference = (2 * jax.nn.sigmoid(lam * gap)) ** eta
    return jnp.where(rank <= omega, preference, 0) + eps


def _quantiles(column: Array) -> Array:
    """Share of smaller entries and half of equal ones: ``[D]``."""
    ordered = jnp.sort(column)
    below, upto = (jnp.searchsorted(ordered, column, side=side) for side in ("left", "right"))
    return ((below + upto) / (2 * len(column))).astype(column.dtype)


def _sums_within(begins: Array, values: Array) -> Array:
    """Cumulative sums that begin anew at each flag: no other domain's rounding gets in."""

    def combine(left, right):
        return left[0] | right[0], right[1] + jnp.where(right[0], 0, left[1])

    return lax.associative_scan(combine, (begins, values))[1]


def _check_domain(domain: Array, num_domains: int) -> None:
    """Raise ValueError unless there is a domain for each of at least one document."""
    checks.rank(1, domain=domain)
    if not len(domain):
        raise ValueError("Expected at least one document, got none.")
    if not jnp.issubdtype(domain.dtype, jnp.integer):
        raise TypeError(f"Expected domain to be integers, got {domain.dtype}.")
    checks.below(num_domains, domain=domain)


def _check_alpha(alpha: Array) -> None:
    """Raise ValueError unless every domain has weights."""
    checks.rank(2, alpha=alpha)
    checks.non_negative(alpha=alpha)
    if checks.is_concrete(alpha) and not np.all(np.sum(np.asarray(alpha), axis=1) > 0):
        raise ValueError("Expected alpha with a positive entry in each row, got a row of zeros.")


def _check_params(params: MixParams) -> None:
    """Raise ValueError unless parameters are of one number of domains and in their ranges."""
    shape = np.shape(params.omega)
    for name, value in params._asdict().items():
        if np.shape(value)[:1] != shape or np.ndim(value) != (2 if name == "alpha" else 1):
            raise ValueError(
                f"Expected {name} of {shape} domains, as omega has, got {name}.shape="
                f"{np.shape(value)}."
            )
    _check_alpha(jnp.asarray(params.alpha))
    checks.non_negative(lam=params.lam, eta=params.eta, eps=params.eps)
    checks.positive(omega=params.omega)
    if checks.is_concrete(params.omega) and not np.all(np.asarray(params.omega) <= 1):
        raise ValueError(f"Expected omega in (0, 1], got omega={params.omega}.")
