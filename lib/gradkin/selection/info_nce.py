"""Symmetric InfoNCE at the end of a dual encoder: losses of pairs, gradients split in two."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float

from gradkin import checks
from gradkin.matrices import products, verbs
from gradkin.typing import Array, ArrayLike

_verb = functools.partial(jax.jit, inline=True)


class EndpointHeads(NamedTuple):
    """The last parameters of a dual encoder: a linear head for each side, and the temperature.

    Attributes:
      image: ``[dv, m]``, takes features of images to embeddings.
      text: ``[dt, m]``, takes features of texts there.
      log_scale: scalar, the logarithm of what cosines are multiplied by.
    """

    image: Array
    text: Array
    log_scale: Array


class SplitGradients(NamedTuple):
    """Gradients of pairs' losses, as the sum of two parts.

    Attributes:
      positive: through the similarity of the pair itself; heads with ``[B, ...]`` at each leaf.
      negative: through its similarities to others.
    """

    positive: EndpointHeads
    negative: EndpointHeads


class Contrast(NamedTuple):
    """A batch of pairs, each against all.

    Attributes:
      images: features ``[B, dv]``.
      texts: features ``[B, dt]``.
      x: embeddings of images, of norm 1, ``[B, m]``.
      y: embeddings of texts.
      inverse_x: one over their norms before that, ``[B]``.
      inverse_y: the same for texts.
      scale: of cosines.
      cosines: ``[B, B]``, images in rows.
      p: ``[B, B]``, probabilities of texts given images, zero on the diagonal.
      q: ``[B, B]``, probabilities of images given texts, down columns, zero on the diagonal.
    """

    images: Array
    texts: Array
    x: Array
    y: Array
    inverse_x: Array
    inverse_y: Array
    scale: Array
    cosines: Array
    p: Array
    q: Array


def endpoint_embeddings(
    heads: EndpointHeads, images: Float[ArrayLike, "n dv"], texts: Float[ArrayLike, "l dt"]
) -> tuple[Float[Array, "n m"], Float[Array, "l m"]]:
    """Embeddings of images and of texts, of norm 1: features times heads, normalized.

    Args:
      heads: an `EndpointHeads`.
      images: features of images, ``[n, dv]``.
      texts: features of texts, ``[l, dt]``.

    Returns:
      ``[n, m]`` and ``[l, m]``, float32 at least; what the heads take to zero stays zero.

    Raises:
      ValueError: shapes that do not fit.

    Example:
      >>> import jax.numpy as jnp
      >>> from gradkin import selection
      >>> heads = selection.EndpointHeads(jnp.eye(2), jnp.eye(2), jnp.zeros(()))
      >>> x, y = selection.endpoint_embeddings(heads, jnp.array([[3.0, 4.0]]), jnp.ones((5, 2)))
      >>> [round(float(value), 4) for value in x[0]], y.shape
      ([0.6, 0.8], (5, 2))

    References:
      Radford et al. (2021), "Learning Transferable Visual Models From Natural Language
      Supervision", arXiv:2103.00020, fig. 3. :cite:`radford:21`
    """
    heads, images, texts = _same_dtype(heads, images, texts)
    return _embed(images, heads.image)[0], _embed(texts, heads.text)[0]


def info_nce(
    heads: EndpointHeads,
    images: Float[ArrayLike, "b dv"],
    texts: Float[ArrayLike, "b dt"],
    *,
    negatives: Bool[ArrayLike, "b b"] | None = None,
) -> Float[Array, " b"]:
    """Symmetric InfoNCE loss of each pair of a batch (Radford et al. 2021, fig. 3).

    .. math:: \\ell_i = -\\frac{1}{2} (\\log p_{ii} + \\log q_{ii})

    with ``p`` the softmax along rows, and ``q`` down columns, of cosines of images and texts times
    ``exp(log_scale)``. The batch's loss is the mean.

    Args:
      heads: an `EndpointHeads`.
      images: features of images, ``[B, dv]``.
      texts: features of their texts, ``[B, dt]``.
      negatives: ``[B, B]``, False where image ``i`` and text ``j`` are not counted as a wrong pair
        (the same picture twice, say); the diagonal is ignored. None counts all.

    Returns:
      ``[B]``, float32 at least.

    Raises:
      ValueError: shapes that do not fit.

    Example:
      >>> import jax.numpy as jnp
      >>> from gradkin import selection
      >>> heads = selection.EndpointHeads(jnp.eye(2), jnp.eye(2), jnp.zeros(()))
      >>> losses = selection.info_nce(heads, jnp.ones((4, 2)), jnp.ones((4, 2)))
      >>> [round(float(value), 4) for value in losses]  # log 4
      [1.3863, 1.3863, 1.3863, 1.3863]

    References:
      Radford et al. (2021), arXiv:2103.00020, fig. 3. :cite:`radford:21`

      van den Oord, Li & Vinyals (2018), "Representation Learning with Contrastive Predictive
      Coding", arXiv:1807.03748, eq. (4). :cite:`oord:18`
    """
    heads, images, texts = _same_dtype(heads, images, texts)
    counted = _counted(negatives, len(images), len(texts))
    x, y = _embed(images, heads.image)[0], _embed(texts, heads.text)[0]
    logits = jnp.exp(heads.log_scale) * _product(x, y.T)
    own = jnp.diagonal(logits)
    logits = jnp.where(counted, logits, -jnp.inf)
    rows, columns = (jax.nn.logsumexp(logits, axis=axis) for axis in (1, 0))
    return (rows - own + (columns - own)) / 2


@_verb
def info_nce_gradients(
    heads: EndpointHeads,
    images: Float[ArrayLike, "b dv"],
    texts: Float[ArrayLike, "b dt"],
    *,
    negatives: Bool[ArrayLike, "b b"] | None = None,
) -> SplitGradients:
    """Gradients of `info_nce` losses, what pulls a pair together apart from what pushes others.

    .. math::
        g_i^+ &= -\\frac{1}{2} [(1 - p_{ii}) + (1 - q_{ii})] \\nabla s_{ii} \\\\
        g_i^- &= \\frac{1}{2} \\sum_{j \\ne i} [p_{ij} \\nabla s_{ij} + q_{ji} \\nabla s_{ji}]

    with the logits ``s``. Their sum is the gradient of the pair's loss. In closed form: one product
    of ``[B, B]`` with ``[B, dv m]`` and one with ``[B, dt m]``.

    Args:
      heads: an `EndpointHeads`.
      images: features of images, ``[B, dv]``.
      texts: features of their texts, ``[B, dt]``.
      negatives: as in `info_nce`.

    Returns:
      `SplitGradients`, ``2 B ((dv + dt) m + 1)`` numbers in float32 at least. An embedding of zero
      has gradient zero.

    Raises:
      ValueError: shapes that do not fit.

    Note:
      Entries of ``log_scale`` are often orders of magnitude above those of the heads, and inner
      products of gradients then mostly theirs.

    Example:
      >>> import jax.numpy as jnp
      >>> from gradkin import selection
      >>> heads = selection.EndpointHeads(jnp.eye(2), jnp.eye(2), jnp.zeros(()))
      >>> found = selection.info_nce_gradients(heads, jnp.eye(2), jnp.eye(2))
      >>> [round(float(value), 4) for value in found.positive.log_scale]  # p_ii - 1
      [-0.2689, -0.2689]

    References:
      Zhuang et al. (2026), "CHIPS: Efficient CLIP Adaptation via Curvature-aware Hybrid
      Influence-based Data Selection", arXiv:2511.18519. :cite:`chips-data-selection`
    """
    c = contrast(heads, images, texts, negatives=negatives)
    own = jnp.diagonal(c.cosines)
    pull = -(jnp.sum(c.p, axis=1) + jnp.sum(c.q, axis=0)) / 2

    def positive(features: Array, x: Array, y: Array, inverse: Array) -> Array:
        return _outer(features, (pull * c.scale * inverse)[:, None] * _beside(x, y, own[:, None]))

    def negative(
        features: Array, x: Array, y: Array, inverse: Array, cosines: Array, p: Array, q: Array
    ) -> Array:
        """Of the head of ``x``: ``p [i, j]`` weighs ``s_ij``, and ``q [i, j]`` ``s_ji``."""
        first = _product(p, y) - jnp.sum(p * cosines, axis=1)[:, None] * x
        ours = _outer(features, inverse[:, None] * first)
        weights = q * inverse[None, :]
        theirs = _outer(_product(weights, features), y)
        each = _outer(features, x).reshape((len(x), -1))
        theirs = theirs - _product(weights * cosines.T, each).reshape(theirs.shape)
        return c.scale / 2 * (ours + theirs)

    image = c.images, c.x, c.y, c.inverse_x
    text = c.texts, c.y, c.x, c.inverse_y
    pushed = jnp.sum(c.p * c.cosines, axis=1) + jnp.sum(c.q * c.cosines, axis=0)
    return SplitGradients(
        EndpointHeads(positive(*image), positive(*text), pull * c.scale * own),
        EndpointHeads(
            negative(*image, c.cosines, c.p, c.q.T),
            negative(*text, c.cosines.T, c.q.T, c.p),
            c.scale / 2 * pushed,
        ),
    )


def contrast(
    heads: EndpointHeads,
    images: ArrayLike,
    texts: ArrayLike,
    *,
    negatives: ArrayLike | None = None,
) -> Contrast:
    """Cosines and probabilities of a batch."""
    heads, images, texts = _same_dtype(heads, images, texts)
    counted = _counted(negatives, len(images), len(texts))
    x, inverse_x = _embed(images, heads.image)
    y, inverse_y = _embed(texts, heads.text)
    scale, cosines = jnp.exp(heads.log_scale), _product(x, y.T)
    logits = jnp.where(counted, scale * cosines, -jnp.inf)
    # One minus a probability is the sum of the others: nothing cancels for a pair that is learned.
    others = ~np.eye(len(images), dtype=bool)
    p, q = (jnp.where(others, jax.nn.softmax(logits, axis=axis), 0) for axis in (1, 0))
    return Contrast(images, texts, x, y, inverse_x, inverse_y, scale, cosines, p, q)


def similarity_gradients(c: Contrast, i: Array) -> EndpointHeads:
    """Gradients of the logits of image ``i`` with all texts, ``[B, ...]`` at each leaf."""
    x, cosines = jnp.broadcast_to(c.x[i], c.x.shape), c.cosines[i]
    image = c.scale * c.inverse_x[i] * _beside(x, c.y, cosines[:, None])
    text = (c.scale * c.inverse_y)[:, None] * _beside(c.y, x, cosines[:, None])
    features = jnp.broadcast_to(c.images[i], c.images.shape)
    return EndpointHeads(_outer(features, image), _outer(c.texts, text), c.scale * cosines)


def _same_dtype(
    heads: EndpointHeads, images: ArrayLike, texts: ArrayLike
) -> tuple[EndpointHeads, Array, Array]:
    """All in one dtype, float32 at least; ValueError where shapes do not fit."""
    image, text, log_scale = (jnp.asarray(leaf) for leaf in heads)
    images, texts = jnp.asarray(images), jnp.asarray(texts)
    checks.rank(2, images=images, texts=texts, **{"heads.image": image, "heads.text": text})
    checks.rank(0, **{"heads.log_scale": log_scale})
    wanted = (images.shape[1], texts.shape[1])
    if (len(image), len(text)) != wanted or image.shape[1] != text.shape[1]:
        raise ValueError(
            f"Expected heads.image [{wanted[0]}, m] and heads.text [{wanted[1]}, m] for "
            f"images.shape={images.shape} and texts.shape={texts.shape}, got {image.shape} and "
            f"{text.shape}."
        )
    arrays = image, text, log_scale, images, texts
    dtype = functools.reduce(np.promote_types, [x.dtype for x in arrays], np.dtype(np.float32))
    image, text, log_scale, images, texts = (x.astype(dtype) for x in arrays)
    return EndpointHeads(image, text, log_scale), images, texts


def _counted(negatives: ArrayLike | None, images: int, texts: int) -> Array:
    """Which similarities count, those of pairs always."""
    if images != texts:
        raise ValueError(f"Expected as many texts as images, got {texts} and {images}.")
    own = np.eye(images, dtype=bool)
    if negatives is None:
        return jnp.asarray(np.ones_like(own))
    negatives = jnp.asarray(negatives)
    if negatives.shape != own.shape or negatives.dtype != bool:
        raise ValueError(
            f"Expected negatives to be boolean of shape {own.shape}, got {negatives.dtype} of "
            f"shape {negatives.shape}."
        )
    return negatives | own


def _embed(features: Array, head: Array) -> tuple[Array, Array]:
    """Embeddings of norm 1 or 0, and one over their norms."""
    z = _product(features, head)
    # Squares of large entries would overflow and of small ones vanish. A factor of a row does not
    # change its direction: its derivative is zero.
    largest = jax.lax.stop_gradient(jnp.max(jnp.abs(z), axis=1, initial=0))
    zero = largest < jnp.finfo(z.dtype).tiny
    largest = jnp.where(zero, 1, largest)
    z = jnp.where(zero[:, None], 0, z) / largest[:, None]
    inverse = verbs.inverse(verbs.safe_sqrt(jnp.sum(jnp.square(z), axis=1)))
    return z * inverse[:, None], inverse / largest


def _beside(x: Array, y: Array, cosines: Array) -> Array:
    """What of ``y`` is orthogonal to ``x``: the derivative of their cosine, times the norm."""
    return y - cosines * x


def _outer(a: Array, b: Array) -> Array:
    """``[B, i, j]``."""
    return a[:, :, None] * b[:, None, :]


def _product(a: Array, b: Array) -> Array:
    return jnp.matmul(a, b, precision=products.HIGHEST)
