"""Utility and diversity of examples, from logits alone: which are worth a backward pass."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float

from gradkin import checks
from gradkin.kernels import Euclidean
from gradkin.matrices.kernel import kernel_matrix
from gradkin.typing import Array, ArrayLike, PRNGKey, Scalar

SCALES = ("reference", "jl")


class BilinearProjection(NamedTuple):
    """A randomized Fourier transform of both axes of logits, subsampled and fixed.

    Attributes:
      time_signs: ``[T]``.
      token_signs: ``[V]``.
      frequencies: of time that are kept, ``[r1]``.
      token_frequencies: of the vocabulary that are kept, ``[r2]``.
      factor: of the result.
    """

    time_signs: Array
    token_signs: Array
    frequencies: Array
    token_frequencies: Array
    factor: Array


class Memory(NamedTuple):
    """The last vectors that were put in.

    Attributes:
      vectors: ``[Q, D]``.
      position: where the next one goes.
      count: how many were put in so far, at most ``Q``.
    """

    vectors: Array
    position: Array
    count: Array


class BatchSelection(NamedTuple):
    """What `utility_diversity_select` selected.

    Attributes:
      indices: of selected examples, best first, ``[k]``.
      scores: ``utility + alpha * diversity``, ``[B]``.
      utility: nuclear norms, ``[B]``.
      diversity: mean distances to the memory, ``[B]``.
      memory: with the selected examples put in.
    """

    indices: Array
    scores: Array
    utility: Array
    diversity: Array
    memory: Memory


def nuclear_norm(
    matrices: Float[ArrayLike, "*batch t v"], *, mask: Bool[ArrayLike, "*batch t"] | None = None
) -> Float[Array, "*batch"]:
    """Sum of the singular values of each matrix (Zou et al. 2025, sec. 3).

    .. math:: \\|L\\|_* = \\sum_j \\sigma_j(L)

    From the triangular factor of the taller side, which is as accurate as the singular values of
    the matrix itself.

    Args:
      matrices: ``[..., T, V]``, in float32 or wider inside.
      mask: ``[..., T]``, False for rows that are left out, whatever they hold.

    Returns:
      ``[...]``; zero of a zero matrix.

    Raises:
      ValueError: fewer than two axes, or a mask of another shape.

    Example:
      >>> import jax.numpy as jnp
      >>> from gradkin import selection
      >>> round(float(selection.nuclear_norm(jnp.array([[3.0, 4.0], [6.0, 8.0]]))), 4)
      11.1803

    References:
      Zou et al. (2025), "Utility-Diversity Aware Online Batch Selection for LLM Supervised
      Fine-tuning", arXiv:2510.16882, sec. 3. :cite:`uds-batch-selection`
    """
    matrices = _rows(matrices, mask)
    time, tokens = matrices.shape[-2:]
    tall = jnp.swapaxes(matrices, -1, -2) if tokens > time else matrices
    factor = jnp.linalg.qr(tall, mode="r")
    return jnp.sum(jnp.linalg.svd(factor, compute_uv=False), axis=-1)


def init_bilinear_projection(
    key: PRNGKey,
    *,
    time: int,
    vocabulary: int,
    rows: int = 8,
    columns: int = 128,
    scale: str = "reference",
) -> BilinearProjection:
    """Draw the projection by which logits are compared, once for a whole training.

    .. math:: z = c\\, P_T \\Re F D_T (P_V \\Re F D_V L^T)^T

    with random signs ``D``, unnormalized Fourier transforms ``F``, and ``P`` that keep ``rows`` and
    ``columns`` frequencies, drawn with replacement. With ``a_v = 1`` where ``2 v`` is a multiple of
    ``V``, else 1/2, and ``b_t`` likewise,

    .. math:: E \\|z\\|^2 = C \\sum_{tv} b_t a_v L_{tv}^2,

    where ``C = V T`` with the reference's scale and 4 with "jl", by which distances are nearly
    those of the logits.

    Args:
      key: PRNG key.
      time: ``T``, length of the longest sequence; shorter ones are padded with zeros.
      vocabulary: ``V``.
      rows: frequencies of time that are kept.
      columns: frequencies of the vocabulary that are kept.
      scale: "reference" or "jl". ``alpha`` depends on it: by ``sqrt(V T) / 2``.

    Returns:
      A `BilinearProjection`.

    Raises:
      ValueError: a size below 1, or another scale.

    Example:
      >>> import jax
      >>> from gradkin import selection
      >>> projection = selection.init_bilinear_projection(
      ...     jax.random.key(0), time=5, vocabulary=20, rows=2, columns=3
      ... )
      >>> projection.token_frequencies.shape
      (3,)

    References:
      Zou et al. (2025), arXiv:2510.16882, sec. 3. :cite:`uds-batch-selection`
    """
    checks.one_of(SCALES, scale=scale)
    checks.positive(time=time, vocabulary=vocabulary, rows=rows, columns=columns)
    k = jax.random.split(key, 4)
    total = 4 if scale == "jl" else time * vocabulary
    return BilinearProjection(
        jax.random.rademacher(k[0], (time,), float),
        jax.random.rademacher(k[1], (vocabulary,), float),
        jax.random.randint(k[2], (rows,), 0, time),
        jax.random.randint(k[3], (columns,), 0, vocabulary),
        jnp.asarray((total / (rows * columns)) ** 0.5),
    )


def project_logits(
    projection: BilinearProjection,
    logits: Float[ArrayLike, "*batch t v"],
    *,
    mask: Bool[ArrayLike, "*batch t"] | None = None,
) -> Float[Array, "*batch d"]:
    """Project logits to a short vector, by `init_bilinear_projection`'s linear map.

    Args:
      projection: for sequences at least as long.
      logits: ``[..., T', V]`` with ``T' <= T``.
      mask: ``[..., T']``, False for tokens that count as zero.

    Returns:
      ``[..., r1 * r2]``.

    Raises:
      ValueError: sequences longer than the projection's, another vocabulary, or a mask of another
        shape.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from gradkin import selection
      >>> projection = selection.init_bilinear_projection(
      ...     jax.random.key(0), time=5, vocabulary=20, rows=2, columns=3
      ... )
      >>> selection.project_logits(projection, jnp.ones((7, 4, 20))).shape
      (7, 6)

    References:
      Zou et al. (2025), arXiv:2510.16882, sec. 3. :cite:`uds-batch-selection`
    """
    x = _rows(logits, mask)
    time, vocabulary = len(projection.time_signs), len(projection.token_signs)
    if x.shape[-1] != vocabulary or x.shape[-2] > time:
        raise ValueError(
            f"Expected logits of at most {time} tokens and a vocabulary of {vocabulary}, got "
            f"logits.shape={x.shape}."
        )
    x = jnp.swapaxes(_frequencies(x, projection.token_signs, projection.token_frequencies), -1, -2)
    signs = projection.time_signs[: x.shape[-1]]
    z = _frequencies(x, signs, projection.frequencies, length=time)
    z = jnp.swapaxes(z, -1, -2)
    return projection.factor.astype(z.dtype) * z.reshape((*z.shape[:-2], -1))


def init_memory(size: int, dimension: int) -> Memory:
    """An empty memory.

    Args:
      size: how many vectors it holds, ``Q``.
      dimension: of a vector.

    Returns:
      A `Memory`.

    Raises:
      ValueError: a number below 1.

    Example:
      >>> from gradkin import selection
      >>> int(selection.init_memory(4, 2).count)
      0
    """
    checks.positive(size=size, dimension=dimension)
    zero = jnp.zeros((), np.int32)
    return Memory(jnp.zeros((size, dimension)), zero, zero)


def push(memory: Memory, vectors: Float[ArrayLike, "k d"]) -> Memory:
    """Put vectors in, over the oldest ones where the memory is full.

    Args:
      memory: as from `init_memory`.
      vectors: ``[k, D]``, at most as many as it holds.

    Returns:
      The new `Memory`.

    Raises:
      ValueError: more vectors than it holds, or of another dimension.

    Example:
      >>> import jax.numpy as jnp
      >>> from gradkin import selection
      >>> memory = selection.init_memory(2, 1)
      >>> for x in (1.0, 2.0, 3.0):
      ...     memory = selection.push(memory, jnp.array([[x]]))
      >>> memory.vectors[:, 0].tolist()
      [3.0, 2.0]
    """
    vectors = jnp.asarray(vectors)
    size, dimension = memory.vectors.shape
    if vectors.ndim != 2 or vectors.shape[1] != dimension or len(vectors) > size:
        raise ValueError(
            f"Expected at most {size} vectors of dimension {dimension}, got "
            f"vectors.shape={vectors.shape}."
        )
    index = (memory.position + jnp.arange(len(vectors), dtype=np.int32)) % size
    return Memory(
        memory.vectors.at[index].set(vectors.astype(memory.vectors.dtype)),
        (memory.position + len(vectors)) % size,
        jnp.minimum(memory.count + len(vectors), size),
    )


def mean_distance(memory: Memory, vectors: Float[ArrayLike, "n d"]) -> Float[Array, " n"]:
    """Mean Euclidean distance to all that the memory holds; zero while it is empty.

    Args:
      memory: as from `init_memory`.
      vectors: ``[n, D]``.

    Returns:
      ``[n]``.

    Example:
      >>> import jax.numpy as jnp
      >>> from gradkin import selection
      >>> memory = selection.push(selection.init_memory(9, 1), jnp.array([[1.0], [3.0]]))
      >>> selection.mean_distance(memory, jnp.array([[0.0], [2.0]])).tolist()
      [2.0, 1.0]
    """
    held = jnp.arange(len(memory.vectors), dtype=np.int32) < memory.count
    vectors = jnp.asarray(vectors).astype(memory.vectors.dtype)
    return kernel_matrix(Euclidean(), vectors, memory.vectors, mask=(None, held)).mean(axis=1)


def utility_diversity_select(
    memory: Memory,
    projection: BilinearProjection,
    logits: Float[ArrayLike, "b t v"],
    k: int,
    *,
    alpha: Scalar,
    mask: Bool[ArrayLike, "b t"] | None = None,
) -> BatchSelection:
    """UDS: the examples of a batch to learn from, by one forward pass (Zou et al. 2025, sec. 3).

    .. math::
        s_i = \\|L_i\\|_* + \\frac{\\alpha}{|M|} \\sum_{m \\in M} \\|z_i - m\\|_2

    with logits ``L_i``, their projections ``z_i`` and the memory ``M`` of those of examples that
    were selected before. The ``k`` of highest score are selected and put into the memory. Gradients
    do not flow into scores.

    Args:
      memory: as from `init_memory(Q, r1 * r2)`, carried from step to step.
      projection: as from `init_bilinear_projection`, the same in all steps.
      logits: ``[B, T, V]``.
      k: how many to select, at most ``B`` and ``Q``.
      alpha: weight of diversity, >= 0; the released code has 0.0015 with the reference's scale.
      mask: ``[B, T]``, False for padding.

    Returns:
      `BatchSelection`; of equal scores the first example wins.

    Raises:
      ValueError: ``k`` outside its range, a negative ``alpha``, shapes that do not fit, or, where
        they can be read, logits that are not finite or an example without any token.

    Note:
      The released code counts padding in the nuclear norm; a mask leaves it out. Without it, and
      to a lesser degree with it, the norm prefers long sequences.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from gradkin import selection
      >>> projection = selection.init_bilinear_projection(
      ...     jax.random.key(0), time=2, vocabulary=3, rows=2, columns=3
      ... )
      >>> logits = jnp.arange(4.0)[:, None, None] * jnp.ones((4, 2, 3))
      >>> found = selection.utility_diversity_select(
      ...     selection.init_memory(8, 6), projection, logits, 2, alpha=0.1
      ... )
      >>> found.indices.tolist(), int(found.memory.count)
      ([3, 2], 2)

    References:
      Zou et al. (2025), "Utility-Diversity Aware Online Batch Selection for LLM Supervised
      Fine-tuning", arXiv:2510.16882, sec. 3. :cite:`uds-batch-selection`
    """
    logits = jax.lax.stop_gradient(jnp.asarray(logits))
    checks.rank(3, logits=logits)
    checks.non_negative(alpha=alpha)
    most = min(len(logits), len(memory.vectors))
    if not 1 <= k <= most:
        raise ValueError(
            f"Expected k from 1 to {most}, the smaller of batch and memory, got k={k}."
        )
    if mask is not None:
        mask = jnp.asarray(mask)
        if checks.is_concrete(mask) and not np.all(np.any(np.asarray(mask), axis=-1)):
            raise ValueError("Expected mask to leave a token of every example.")
    rows = _rows(logits, mask)
    if checks.is_concrete(rows) and not np.all(np.isfinite(np.asarray(rows))):
        raise ValueError("Expected logits to be finite, got NaN or infinity.")
    vectors = project_logits(projection, rows)
    utility, diversity = nuclear_norm(rows), mean_distance(memory, vectors)
    scores = utility + alpha * diversity
    indices = jax.lax.top_k(scores, k)[1]
    return BatchSelection(indices, scores, utility, diversity, push(memory, vectors[indices]))


def _rows(matrices: ArrayLike, mask: ArrayLike | None) -> Array:
    """The matrices as floats, float32 at least, rows that are left out zero."""
    matrices = jnp.asarray(matrices)
    matrices = matrices.astype(jnp.promote_types(matrices.dtype, np.float32))
    if matrices.ndim < 2:
        raise ValueError(f"Expected matrices, got an array of shape {matrices.shape}.")
    if mask is None:
        return matrices
    mask = jnp.asarray(mask)
    if mask.shape != matrices.shape[:-1]:
        raise ValueError(f"Expected mask of shape {matrices.shape[:-1]}, got {mask.shape}.")
    return jnp.where(mask[..., None], matrices, 0)


def _frequencies(x: Array, signs: Array, kept: Array, *, length: int | None = None) -> Array:
    """Some real parts of the Fourier transform along the last axis, after random signs."""
    length = x.shape[-1] if length is None else length
    signs = signs.astype(x.dtype).reshape((1,) * (x.ndim - 1) + (-1,))
    spectrum = jnp.fft.rfft(x * signs, n=length, axis=-1).real
    return spectrum[..., jnp.minimum(kept, length - kept)]  # real parts are symmetric
