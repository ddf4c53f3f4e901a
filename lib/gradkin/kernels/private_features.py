"""Sums of a kernel over private points: one release, any number of queries."""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gradkin import checks
from gradkin.kernels import private_rows
from gradkin.kernels.exponential_sums import ExponentialSum
from gradkin.kernels.features import draw_frequencies
from gradkin.kernels.functions import Exponential, Gaussian, Laplacian
from gradkin.kernels.private_budget import PrivacyBudget, Sensitivity, add_noise, check_budget
from gradkin.pytrees import register_dataclass
from gradkin.typing import Array, ArrayLike, PRNGKey

ALLOCATIONS = ("proportional", "equal")
# Numbers of one block of features while rows are summed.
BLOCK = 2**22


@functools.partial(
    register_dataclass,
    data_fields=["sums", "frequencies", "offsets", "coefficients", "projection"],
    meta_fields=["budget", "noise_scale", "grouped"],
)
@dataclasses.dataclass(frozen=True)
class PrivateKernelSums:
    """Noisy sums of random features: what `private_kernel_sums` released.

    Everything here is public. Queries cost no privacy, however many there are, and answers may be
    negative: cutting them at zero is free post-processing.

    Attributes:
      sums: noisy sums of features over the rows ``[C, F]``.
      frequencies: ``[m, k]``.
      offsets: phases ``[m]`` (then F = m); None where cosine and sine are paired (F = 2 m).
      coefficients: weight of each frequency ``[m]``.
      projection: what maps points to ``k`` coordinates ``[k, d]``, or None.
      budget: what the release cost.
      noise_scale: scale of the noise on every number of ``sums``.
      grouped: whether there are classes: answers are ``[q, C]``, else ``[q]``.
    """

    sums: Any
    frequencies: Any
    offsets: Any
    coefficients: Any
    projection: Any
    budget: PrivacyBudget
    noise_scale: float
    grouped: bool

    def sum(self, y: ArrayLike) -> Array:
        """Estimate the sum of the kernel over private points.

        Args:
          y: queries ``[q, d]``.

        Returns:
          ``sum_x k(x, y)``, ``[q]`` or, for each class, ``[q, C]``. Divide by the number of rows
          for a mean, if that number is public.
        """
        weights = self._weights(y)
        sums = jnp.matmul(weights, self.sums.T, precision=jax.lax.Precision.HIGHEST)
        return sums if self.grouped else sums[:, 0]

    def noise_std(self, y: ArrayLike) -> Array:
        """Standard deviation that the noise alone gives to each answer of `sum`, ``[q]``.

        Exact, and the same for all classes. It leaves out the error of finitely many features (of
        order ``n / sqrt(m)``) and of a projection, which only the data could tell.
        """
        norms = jnp.sqrt(jnp.sum(jnp.square(self._weights(y)), axis=1))
        return norms * self.budget.deviation(self.noise_scale)

    def classify(self, y: ArrayLike) -> Array:
        """The class of largest sum, int32 ``[q]``: Bayes' rule for the kernel's density."""
        if not self.grouped:
            raise ValueError("Expected a release with labels to classify by, got one without.")
        return jnp.argmax(self.sum(y), axis=1).astype(np.int32)

    def event(self) -> Any:
        """The `dp_accounting.DpEvent` of this release; see `PrivacyBudget`."""
        return self.budget.event()

    def _weights(self, y: ArrayLike) -> Array:
        """What an answer multiplies the sums by ``[q, F]``."""
        width = (self.frequencies if self.projection is None else self.projection).shape[1]
        y = jnp.asarray(y)
        if y.ndim != 2 or y.shape[1] != width:
            raise ValueError(f"Expected y of shape [q, {width}], got y.shape={y.shape}.")
        y = y.astype(self.frequencies.dtype)
        features = _features(_projected(y, self.projection), self.frequencies, self.offsets)
        repeats = features.shape[1] // len(self.coefficients)
        return features * jnp.tile(self.coefficients, repeats)[None]


def private_kernel_sums(
    key: PRNGKey,
    kernel: Any,
    x: ArrayLike,
    *,
    size: int,
    budget: PrivacyBudget,
    projection_size: int | None = None,
    paired: bool = True,
    mask: ArrayLike | None = None,
    labels: ArrayLike | None = None,
    num_classes: int | None = None,
) -> PrivateKernelSums:
    """Release private points so that sums of a kernel to them can be asked for ever after.

    The sum of random Fourier features over the rows gets noise:

    .. math:: \\sum_x k(x, y) \\approx \\frac{1}{m} \\Big\\langle \\sum_x \\phi(x) + \\text{noise},
        \\phi(y) \\Big\\rangle

    with m frequencies and, per frequency, ``(cos w.x, sin w.x)`` (L1 sensitivity ``sqrt(2) m``, L2
    sensitivity ``sqrt(m)``) or ``sqrt(2) cos(w.x + b)`` (``sqrt(2) m`` and ``sqrt(2 m)``).

    Args:
      key: a key used for nothing else, and kept secret.
      kernel: `Gaussian`, `Exponential`, `Laplacian` or `Cauchy`, or another kernel with a
        ``spectral_scale``; its bandwidth is public.
      x: private points ``[n, d]``, of any range: features are bounded.
      size: frequencies ``m``, >= 1. Laplace noise on a sum has deviation ``2 sqrt(m) / epsilon``,
        that of paired Gaussian noise does not grow with m; the features' error is of order
        ``n / sqrt(m)``. With Laplace noise ``m = n epsilon / 2`` balances them.
      budget: what the release may cost.
      projection_size: coordinates that a random Gaussian map (Johnson & Lindenstrauss), drawn
        without looking at the data, leaves before the features: the sums of kernels of the l2
        distance change little, and large inputs are queried faster. None keeps all.
      paired: cosine and sine of each frequency, or cosine with a random phase, as in the earlier
        mechanism of Wagner et al.
      mask: which rows count ``[n]``.
      labels: class of each row ``[n]``: sums per class. A row is in one class only, so all classes
        together cost no more than one.
      num_classes: how many classes there are; public.

    Returns:
      `PrivateKernelSums`; ``.sum(y)`` answers.

    Raises:
      ValueError: rows that are not finite, no features, labels without ``num_classes``, a
        projection for a kernel of the l1 distance.
      TypeError: a kernel without known spectrum, points that are not floating.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from gradkin import kernels
      >>> x = jax.random.normal(jax.random.key(0), (5000, 3))
      >>> kernel, y = kernels.Gaussian(1.0), jnp.zeros((1, 3))
      >>> release = kernels.private_kernel_sums(
      ...     jax.random.key(1), kernel, x, size=500, budget=kernels.PrivacyBudget(1.0))
      >>> exact = sum(kernel.tile(y, x)[0])
      >>> bool(abs(release.sum(y)[0] - exact) / 5000 < 0.1)
      True

    Note:
      With an infinite epsilon this is the plain feature approximation. Pairs, this library's
      choice, have at equal Laplace noise less variance of the features, and let Gaussian noise be
      smaller by ``sqrt(2)``.

    References:
      Backurs et al. (2024), "Efficiently Computing Similarities to Private Datasets", ICLR,
      arXiv:2403.08917, section 7. :cite:`dp-similarities`
      Wagner, Naaman & Mendelson (2023), "Fast Private Kernel Density Estimation via Locality
      Sensitive Quantization", ICML, arXiv:2307.01877. :cite:`wagner:23`
      Rahimi & Recht (2007), "Random Features for Large-Scale Kernel Machines", NeurIPS.
      :cite:`rahimi:07`
    """
    one = ExponentialSum(np.ones(1), np.ones(1))
    rows = private_rows.checked_rows(x, mask, labels, num_classes)
    return _release(
        key, kernel, rows, one, size, budget, projection_size, paired, "equal", labels is not None
    )


def private_smooth_kernel_sums(
    key: PRNGKey,
    kernel: Any,
    x: ArrayLike,
    *,
    terms: ExponentialSum,
    size: int,
    budget: PrivacyBudget,
    allocation: str = "proportional",
    projection_size: int | None = None,
    paired: bool = True,
    mask: ArrayLike | None = None,
    labels: ArrayLike | None = None,
    num_classes: int | None = None,
) -> PrivateKernelSums:
    """Release private points so that sums of a smooth function of the distance can be asked for.

    A kernel ``exp(-z(x, y))`` and ``f(z) = sum_i a_i exp(-t_i z)`` give ``f(z(x, y))``: of
    `Exponential`, ``exponential_sum`` makes ``1 / (1 + |x - y| / h)``, of `Laplacian` the same in
    the l1 distance, of `Gaussian` ``1 / (1 + |x - y|^2 / (2 h^2))``.

    Args:
      key: a key used for nothing else, and kept secret.
      kernel: `Exponential`, `Laplacian` or `Gaussian`; its bandwidth is public.
      x: private points ``[n, d]``, of any range.
      terms: of `exponential_sum`, or any weights and rates.
      size: frequencies of all terms together, at least one per term.
      budget: what the release may cost.
      allocation: "proportional" gives a term frequencies in proportion to its weight, so that the
        noise is that of one kernel (times ``sum |a|``); "equal" gives all terms as many, and with
        that an equal share of the budget, as in the paper.
      projection_size: see `private_kernel_sums`.
      paired: see `private_kernel_sums`.
      mask: which rows count ``[n]``.
      labels: class of each row ``[n]``.
      num_classes: how many classes there are; public.

    Returns:
      `PrivateKernelSums`; ``.sum(y)`` answers.

    Raises:
      ValueError: see `private_kernel_sums`; fewer frequencies than terms, unequal or negative
        terms, an unknown allocation.
      TypeError: another kernel.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from gradkin import kernels
      >>> x = jax.random.normal(jax.random.key(0), (5000, 3))
      >>> release = kernels.private_smooth_kernel_sums(
      ...     jax.random.key(1), kernels.Exponential(1.0), x, terms=kernels.exponential_sum(1e-3),
      ...     size=1000, budget=kernels.PrivacyBudget(1.0))
      >>> exact = jnp.sum(1 / (1 + jnp.linalg.norm(x, axis=1)))
      >>> bool(abs(release.sum(jnp.zeros((1, 3)))[0] - exact) / 5000 < 0.1)
      True

    References:
      Backurs et al. (2024), "Efficiently Computing Similarities to Private Datasets", ICLR,
      arXiv:2403.08917, section 9. :cite:`dp-similarities`
    """
    checks.one_of(ALLOCATIONS, allocation=allocation)
    if not isinstance(kernel, Exponential | Gaussian | Laplacian):
        raise TypeError(
            "Expected kernel to be Exponential, Gaussian or Laplacian, whose powers are kernels of "
            f"the same kind, got {type(kernel).__name__}."
        )
    weights, rates = (np.asarray(part, np.float64) for part in terms)
    if weights.shape != rates.shape or weights.ndim != 1 or len(weights) == 0 or rates.min() < 0:
        raise ValueError(
            "Expected terms to have as many weights as rates, all rates >= 0, got shapes "
            f"{weights.shape} and {rates.shape}."
        )
    rows = private_rows.checked_rows(x, mask, labels, num_classes)
    return _release(
        key,
        kernel,
        rows,
        ExponentialSum(weights, rates),
        size,
        budget,
        projection_size,
        paired,
        allocation,
        labels is not None,
    )


def _release(
    key, kernel, rows, terms, size, budget, projection_size, paired, allocation, grouped
) -> PrivateKernelSums:
    check_budget(budget)
    if not callable(getattr(kernel, "spectral_scale", None)):
        raise TypeError(
            "Expected a kernel with a known spectrum (Gaussian, Exponential, Laplacian, Cauchy), "
            f"got {type(kernel).__name__}."
        )
    num_terms = len(terms.weights)
    if not checks.is_integer(size, least=num_terms):
        raise ValueError(f"Expected size to be an integer >= {num_terms}, got size={size!r}.")
    width, dtype = rows.x.shape[1], rows.x.dtype
    kernel.check((width,))
    bandwidth = jnp.broadcast_to(jnp.asarray(kernel.bandwidth).astype(dtype), (width,))
    map_key, frequency_key, phase_key, noise_key = jax.random.split(key, 4)
    projection = None
    if projection_size is not None:
        if isinstance(kernel, Laplacian):
            raise ValueError(
                "Expected no projection_size for Laplacian, a kernel of the l1 distance: a "
                f"Gaussian map keeps l2 distances; got projection_size={projection_size}."
            )
        if not checks.is_integer(projection_size, least=1):
            raise ValueError(
                f"Expected projection_size to be an integer >= 1, got {projection_size!r}."
            )
        projection = jax.random.normal(map_key, (projection_size, width), dtype)
        projection = projection / math.sqrt(projection_size) / bandwidth[None]
        width, bandwidth = projection_size, jnp.ones((projection_size,), dtype)
    counts = allocate(terms.weights, size, allocation)
    # exp(-t z) has the frequencies of exp(-z) times t, or its root where z is a squared distance.
    power = 0.5 if isinstance(kernel, Gaussian) else 1.0
    rates = jnp.asarray(np.repeat(terms.rates**power, counts), dtype)
    frequencies = draw_frequencies(frequency_key, kernel, size, width, orthogonal=False)
    frequencies = frequencies.astype(dtype) * rates[:, None] / bandwidth[None]
    offsets = None
    if not paired:
        offsets = jax.random.uniform(phase_key, (size,), dtype, 0.0, 2 * math.pi)
    coefficients = jnp.asarray(np.repeat(terms.weights / counts, counts), dtype)
    l2 = math.sqrt(size if paired else 2 * size)
    scale = budget.scale(Sensitivity(math.sqrt(2) * size, l2))
    sums = _noisy_sums(
        noise_key,
        rows.x,
        rows.labels,
        rows.keep,
        projection,
        frequencies,
        offsets,
        scale,
        classes=rows.num_classes,
        distribution=budget.distribution,
    )
    return PrivateKernelSums(
        sums, frequencies, offsets, coefficients, projection, budget, scale, grouped
    )


def allocate(weights: np.ndarray, size: int, allocation: str) -> np.ndarray:
    """Frequencies per term ``[T]``, at least one each, ``size`` in all."""
    shares = np.ones(len(weights)) if allocation == "equal" else np.abs(weights)
    wanted = shares / shares.sum() * (size - len(weights))
    counts = np.floor(wanted).astype(int)
    # The largest remainders get what is left over.
    rest = size - len(weights) - counts.sum()
    counts[np.argsort(counts - wanted, kind="stable")[:rest]] += 1
    return counts + 1


def _projected(x: Array, projection: Array | None) -> Array:
    if projection is None:
        return x
    return jnp.matmul(x, projection.T, precision=jax.lax.Precision.HIGHEST)


def _features(x: Array, frequencies: Array, offsets: Array | None) -> Array:
    """``[n, k] -> [n, F]``."""
    angles = jnp.matmul(x, frequencies.T, precision=jax.lax.Precision.HIGHEST)
    if offsets is None:
        return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=1)
    return math.sqrt(2) * jnp.cos(angles + offsets[None])


@functools.partial(jax.jit, static_argnames=("classes", "distribution"))
def _noisy_sums(
    key, x, labels, keep, projection, frequencies, offsets, scale, *, classes, distribution
):
    """Sums of features per class ``[C, F]`` with noise, block by block of rows."""
    n = x.shape[0]
    count = -(-n * 2 * frequencies.shape[0] // BLOCK)
    block = -(-n // count)
    # Every count-th row is a block: on rows that are sharded over devices, a slice of each shard.
    spare = count * block - n
    x, labels, keep = (
        jnp.pad(v, ((0, spare), *[(0, 0)] * (v.ndim - 1))).reshape(block, count, *v.shape[1:])
        for v in (x, labels, keep)
    )

    def part(k):
        rows, row_labels, row_keep = (
            jax.lax.dynamic_index_in_dim(v, k, axis=1, keepdims=False) for v in (x, labels, keep)
        )
        features = _features(_projected(rows, projection), frequencies, offsets)
        members = (row_labels[:, None] == jnp.arange(classes)[None]) & row_keep[:, None]
        members = members.astype(features.dtype)
        return jnp.matmul(members.T, features, precision=jax.lax.Precision.HIGHEST)

    sums = part(0)
    if count > 1:
        sums = jax.lax.fori_loop(1, count, lambda k, total: total + part(k), sums)
    return add_noise(key, sums, scale, distribution)
