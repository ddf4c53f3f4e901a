"""Similarity of things from the tags that people gave them."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from gradkin import checks
from gradkin.similarity.features import sum_over_features
from gradkin.typing import Array

TAG_MODES = ("jaccard", "tfidf", "embedding")


def tag_similarity(
    tags: Float[Array, "n v"],
    *,
    mode: str = "jaccard",
    embeddings: Float[Array, "v d"] | None = None,
) -> Float[Array, "n n"]:
    """Similarity of stimuli from the tags that people gave them (Marjieh et al. 2023).

    ===========  ===================================================================
    mode         similarity of stimuli with tag weights s and t
    ===========  ===================================================================
    jaccard      ``sum_k min(s_k, t_k) / sum_k max(s_k, t_k)``: on sets, Jaccard's index
    tfidf        cosine, where tags that many stimuli have count less
    embedding    cosine of the weighted mean embeddings of their tags
    ===========  ===================================================================

    Args:
      tags: ``[n, v]``, not negative: which of ``v`` tags a stimulus has, or how much.
      mode: "jaccard", "tfidf" or "embedding".
      embeddings: ``[v, d]``, vectors of the tags, for "embedding" only.

    Returns:
      ``[n, n]``, symmetric. Under a transformation, where that cannot be refused, a stimulus
      without tags is similar to none.

    Raises:
      ValueError: an unknown mode, embeddings missing or not used, tags that are negative, a
        stimulus without tags.

    Example:
      >>> import jax.numpy as jnp
      >>> from gradkin import similarity
      >>> tags = jnp.array([[1.0, 1.0, 0.0], [0.0, 1.0, 1.0], [1.0, 1.0, 0.0]])
      >>> similarity.tag_similarity(tags)[0].round(4).tolist()
      [1.0, 0.33329999446868896, 1.0]

    References:
      Marjieh et al. (2023), arXiv:2206.04105. :cite:`words-human-similarity`

    Note:
      Inverse document frequencies are smoothed: ``1 + log((1 + n) / (1 + stimuli with the tag))``.
    """
    checks.one_of(TAG_MODES, mode=mode)
    checks.rank(2, tags=tags)
    checks.non_negative(tags=tags)
    if (embeddings is None) == (mode == "embedding"):
        raise ValueError(f"Expected embeddings with mode='embedding' only, got mode={mode!r}.")
    if checks.is_concrete(tags) and not np.all(np.any(np.asarray(tags) > 0, axis=1)):
        without = np.flatnonzero(~np.any(np.asarray(tags) > 0, axis=1)).tolist()
        raise ValueError(f"Expected every stimulus to have tags, got none at rows {without[:8]}.")
    if mode == "jaccard":
        smaller, sizes = sum_over_features(jnp.minimum, tags, tags), jnp.sum(tags, axis=1)
        larger = sizes[:, None] + sizes[None, :] - smaller
        empty = larger == 0
        return jnp.where(empty, 0, smaller / jnp.where(empty, 1, larger))
    if mode == "tfidf":
        found = jnp.sum((tags > 0).astype(tags.dtype), axis=0)
        vectors = tags * (1 + jnp.log((1 + len(tags)) / (1 + found)))[None, :]
    else:
        vectors = jnp.matmul(tags, jnp.asarray(embeddings), precision="highest")
    squares = jnp.sum(jnp.square(vectors), axis=1, keepdims=True)
    zero = squares == 0
    vectors = jnp.where(zero, 0, vectors * jax.lax.rsqrt(jnp.where(zero, 1, squares)))
    return jnp.matmul(vectors, vectors.T, precision="highest")
