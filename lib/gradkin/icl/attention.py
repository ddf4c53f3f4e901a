"""A transformer of attention layers only, as pure functions of its weights."""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float

from gradkin import checks
from gradkin.typing import Array, PRNGKey, Scalar

SOFTMAX = ("none", "first", "all")


class AttentionWeights(NamedTuple):
    """Projections of L layers of H heads; L = 1 is one layer, applied as often as wanted.

    query, key, value: ``[L, H, D, K]``; output: ``[L, H, K, D]``. Tokens are rows: q = e @ query.
    """

    query: Any
    key: Any
    value: Any
    output: Any


@functools.partial(jax.jit, static_argnames=("width", "key_size", "num_heads", "num_layers"))
def init_attention(
    key: PRNGKey,
    *,
    width: int,
    key_size: int | None = None,
    num_heads: int = 1,
    num_layers: int = 1,
    variance: Scalar = 0.002,
) -> AttentionWeights:
    """Draw small weights: truncated normal of variance ``variance / fan_in``.

    Args:
      key: PRNG key.
      width: D, the width of a token.
      key_size: K, the size of keys, queries and values of a head; ``width`` by default.
      num_heads: H.
      num_layers: L, the number of layers with weights of their own.
      variance: the scale; the paper uses 0.002 divided by the depth.

    Returns:
      ``AttentionWeights``.

    Raises:
      ValueError: for a size that is not positive.

    Example:
      >>> import jax
      >>> from gradkin import icl
      >>> icl.init_attention(jax.random.key(0), width=11, num_heads=2).output.shape
      (1, 2, 11, 11)

    References:
      von Oswald et al. (2023), arXiv:2212.07677. :cite:`icl-gradient-descent`
    """
    key_size = width if key_size is None else key_size
    checks.positive(width=width, key_size=key_size, num_heads=num_heads, num_layers=num_layers)
    # The standard deviation of a normal truncated at two deviations.
    scale = jnp.sqrt(jnp.asarray(variance)) / 0.87962566103423978
    shape = (4, num_layers, num_heads, width, key_size)
    query, keys, value, output = jax.random.truncated_normal(key, -2.0, 2.0, shape) * scale
    return AttentionWeights(
        query=query / math.sqrt(width),
        key=keys / math.sqrt(width),
        value=value / math.sqrt(width),
        output=jnp.swapaxes(output, 2, 3) / math.sqrt(num_heads * key_size),
    )


@functools.partial(jax.jit, static_argnames="softmax")
def attention_scores(
    layer: AttentionWeights,
    queries: Float[Array, "queries width"],
    context: Float[Array, "context width"],
    *,
    softmax: bool = False,
) -> Float[Array, "heads queries context"]:
    """How much each query token reads from each context token, per head.

    Args:
      layer: weights of one layer, without the layer axis.
      queries: the tokens that read.
      context: the tokens that are read.
      softmax: normalise over the context after division by sqrt(K); else the plain products.

    Returns:
      ``[heads, queries, context]``.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from gradkin import icl
      >>> weights = icl.init_attention(jax.random.key(0), width=3)
      >>> layer = jax.tree.map(lambda w: w[0], weights)
      >>> scores = icl.attention_scores(layer, jnp.ones((1, 3)), jnp.ones((4, 3)), softmax=True)
      >>> scores.tolist()
      [[[0.25, 0.25, 0.25, 0.25]]]
    """
    q = jnp.einsum("td,hdk->htk", queries, layer.query)
    k = jnp.einsum("nd,hdk->hnk", context, layer.key)
    scores = jnp.einsum("htk,hnk->htn", q, k)
    if softmax:
        scores = jax.nn.softmax(scores / math.sqrt(layer.key.shape[-1]), axis=-1)
    return scores


@functools.partial(jax.jit, static_argnames="softmax")
def attend(
    layer: AttentionWeights,
    queries: Float[Array, "queries width"],
    context: Float[Array, "context width"],
    *,
    softmax: bool = False,
) -> Float[Array, "queries width"]:
    """One attention layer, without the residual (von Oswald et al. 2023, eq. (1) and (2)).

    sum_h P_h V_h softmax(K_h^T q_h), or the same without the softmax and without any scaling.

    Args:
      layer: weights of one layer, without the layer axis.
      queries: the tokens that read.
      context: the tokens that are read, keys and values.
      softmax: softmax attention instead of linear attention.

    Returns:
      What is added to each of ``queries``.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from gradkin import icl
      >>> weights = icl.gd_attention(num_inputs=2, num_outputs=1, num_context=3, rate=1.0)
      >>> layer = jax.tree.map(lambda w: w[0], weights)
      >>> icl.attend(layer, jnp.ones((1, 3)), jnp.ones((3, 3)))[0, -1].tolist()
      -2.0

    References:
      von Oswald et al. (2023), arXiv:2212.07677. :cite:`icl-gradient-descent`
    """
    scores = attention_scores(layer, queries, context, softmax=softmax)
    v = jnp.einsum("nd,hdk->hnk", context, layer.value)
    return jnp.einsum("htk,hkd->td", jnp.einsum("htn,hnk->htk", scores, v), layer.output)


def depth(weights: AttentionWeights, num_layers: int | None, softmax: str) -> int:
    """How often a layer is applied, after checks."""
    checks.rank(4, weights_query=weights.query, weights_output=weights.output)
    checks.one_of(SOFTMAX, softmax=softmax)
    own = weights.query.shape[0]
    num_layers = int(own) if num_layers is None else num_layers
    checks.positive(num_layers=num_layers)
    if own not in (1, num_layers):
        raise ValueError(
            f"Expected num_layers to be the {own} layers of weights, or weights of one layer to "
            f"apply repeatedly, got num_layers={num_layers}."
        )
    return num_layers


def context_size(num_tokens: int, num_context: int | None) -> int:
    """How many leading tokens are read, after checks; all but the query by default."""
    num_context = num_tokens - 1 if num_context is None else num_context
    if not 0 < num_context <= num_tokens:
        raise ValueError(
            f"Expected 0 < num_context <= {num_tokens}, the number of tokens, got "
            f"num_context={num_context}."
        )
    return num_context


@functools.partial(jax.jit, static_argnames=("num_layers", "num_context", "num_outputs", "softmax"))
def transformer(
    weights: AttentionWeights,
    tokens: Float[Array, "tokens width"],
    *,
    num_layers: int | None = None,
    num_context: int | None = None,
    num_outputs: int | None = None,
    softmax: str = "none",
    damping: Scalar = 1.0,
    clip: Scalar | None = None,
) -> Float[Array, "depth tokens width"]:
    """Apply attention layers with residuals and return the tokens after each of them.

    e <- e + damping * attend(e, context), every token alike; the query token, the last one, is
    never read. ``-tokens[-1, -num_outputs:]`` is the prediction.

    Args:
      weights: L layers; one layer is shared by all ``num_layers`` applications.
      tokens: one task's tokens, the query last.
      num_layers: how many layers are applied; those of ``weights`` by default.
      num_context: how many leading tokens are read; all but the last by default.
      num_outputs: update only this many last entries of each token (the targets), as gradient
        descent does; all entries by default.
      softmax: which layers normalise their scores: "none", "first" or "all".
      damping: factor on each layer's update.
      clip: keep the entries within -clip and clip after each layer.

    Returns:
      ``[num_layers + 1, tokens, width]``, the given tokens first.

    Raises:
      ValueError: where ``num_layers`` and ``weights``, or ``num_context`` and ``tokens``,
        disagree, or ``softmax`` is unknown.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from gradkin import icl
      >>> weights = icl.init_attention(jax.random.key(0), width=3)
      >>> icl.transformer(weights, jnp.ones((5, 3)), num_layers=2).shape
      (3, 5, 3)

    References:
      von Oswald et al. (2023), arXiv:2212.07677. :cite:`icl-gradient-descent`
    """
    num_layers = depth(weights, num_layers, softmax)
    num_context = context_size(tokens.shape[0], num_context)
    keep = 0 if num_outputs is None else tokens.shape[1] - num_outputs
    updated = jnp.arange(tokens.shape[1]) >= keep

    def apply(tokens, layer, normalise):
        update = attend(layer, tokens, tokens[:num_context], softmax=normalise)
        tokens = tokens + damping * jnp.where(updated[None], update, 0)
        return tokens if clip is None else jnp.clip(tokens, -clip, clip)

    def body(tokens, layer):
        tokens = apply(tokens, layer, softmax == "all")
        return tokens, tokens

    if softmax == "first":
        shared = weights.query.shape[0] == 1
        first = apply(tokens, jax.tree.map(lambda w: w[0], weights), True)
        rest = weights if shared else jax.tree.map(lambda w: w[1:], weights)
        states = [tokens[None], first[None], stack(body, first, rest, num_layers - 1)]
    else:
        states = [tokens[None], stack(body, tokens, weights, num_layers)]
    return jnp.concatenate(states)


def stack(body, tokens, weights, num_layers):
    """Scan ``body`` over the layers, or over one shared layer ``num_layers`` times."""
    if weights.query.shape[0] == num_layers:
        return jax.lax.scan(body, tokens, weights)[1]
    layer = jax.tree.map(lambda w: w[0], weights)
    return jax.lax.scan(lambda c, _: body(c, layer), tokens, length=num_layers)[1]


@functools.partial(jax.jit, static_argnames=("num_outputs", "num_layers", "num_context", "softmax"))
def predict(
    weights: AttentionWeights,
    tokens: Float[Array, "tokens width"],
    *,
    num_outputs: int = 1,
    num_layers: int | None = None,
    num_context: int | None = None,
    softmax: str = "none",
    damping: Scalar = 1.0,
) -> Float[Array, " outputs"]:
    """The prediction at the query, by the cheapest exact route.

    The last layer is evaluated at the query alone. Linear layers before it act on the context
    only through its second moment S = sum_i e_i e_i^T: with A = I + damping sum_h M_h S V_h,
    M_h = query key^T and V_h = value output, every token is multiplied by A and S becomes
    A^T S A. Up to three layers need products of S with vectors only, O(context * width) each;
    more layers form S, after which a layer costs O(width^3) whatever the size of the context.

    Args:
      weights: L layers; one layer is shared by all ``num_layers`` applications.
      tokens: one task's tokens, the query last.
      num_outputs: how many last entries of the query token hold minus the prediction.
      num_layers: how many layers are applied; those of ``weights`` by default.
      num_context: how many leading tokens are read; all but the last by default.
      softmax: which layers normalise their scores: "none", "first" or "all".
      damping: factor on each layer's update.

    Returns:
      The prediction, minus the last entries of the query token after the last layer.

    Raises:
      ValueError: as ``transformer``.

    Example:
      >>> import jax.numpy as jnp
      >>> from gradkin import icl
      >>> weights = icl.gd_attention(num_inputs=2, num_outputs=1, num_context=1, rate=0.5)
      >>> tokens = icl.constructed_tokens(jnp.ones((1, 2)), jnp.ones((1, 1)), jnp.ones(2))
      >>> icl.predict(weights, tokens).tolist()
      [1.0]

    References:
      von Oswald et al. (2023), arXiv:2212.07677. :cite:`icl-gradient-descent`
    """
    num_layers = depth(weights, num_layers, softmax)
    num_context = context_size(tokens.shape[0], num_context)
    query, context = tokens[-1], tokens[:num_context]
    own = weights.query.shape[0]
    layer = lambda i: jax.tree.map(lambda w: w[i if own > 1 else 0], weights)
    if softmax == "none":
        layers = [merge(layer(i)) for i in range(num_layers)]
        if num_layers <= 3:
            query, read = through_vectors(layers[:-1], query, context, damping)
        else:
            query, read = through_moment(layers[:-1], query, context, damping)
        bilinear, value = layers[-1]
        update = jnp.einsum(
            "hd,hdo->o", read(jnp.einsum("a,hab->hb", query, bilinear)), value[..., -num_outputs:]
        )
    else:
        if num_layers > 1:
            first = weights if own == 1 else jax.tree.map(lambda w: w[:-1], weights)
            states = transformer(
                first,
                tokens,
                num_layers=num_layers - 1,
                num_context=num_context,
                softmax=softmax,
                damping=damping,
            )
            query, context = states[-1, -1], states[-1, :num_context]
        normalise = softmax == "all" or num_layers == 1
        update = attend(layer(num_layers - 1), query[None], context, softmax=normalise)
        update = update[0, -num_outputs:]
    return -(query[-num_outputs:] + damping * update)


def through_moment(layers, query, context, damping):
    """The query after some linear layers, and the map u -> S u of the context after them."""
    moment = context.T @ context
    for bilinear, value in layers:
        update = jnp.einsum("hab,bc,hcd->ad", bilinear, moment, value)
        query = query + damping * (query @ update)
        half = moment + damping * (moment @ update)
        moment = half + damping * (update.T @ half)
    return query, lambda rows: rows @ moment


def through_vectors(layers, query, context, damping):
    """As `through_moment`, by products of the first S with vectors: three per product and layer."""
    read = lambda rows: (rows @ context.T) @ context
    for bilinear, value in layers:
        query = query + damping * row_update(bilinear, value, read, query[None])[0]

        def moved(rows, bilinear=bilinear, value=value, read=read):
            # rows A^T S A for the symmetric S of the layer before.
            flipped = jnp.swapaxes(value, 1, 2), jnp.swapaxes(bilinear, 1, 2)
            rows = read(rows + damping * row_update(*flipped, read, rows))
            return rows + damping * row_update(bilinear, value, read, rows)

        read = moved
    return query, read


def row_update(bilinear, value, read, rows):
    """``sum_h rows M_h S V_h`` for rows ``[r, D]``."""
    keys = jnp.einsum("ra,hab->hrb", rows, bilinear)
    seen = read(keys.reshape(-1, keys.shape[-1])).reshape(keys.shape)
    return jnp.einsum("hrb,hbc->rc", seen, value)


def merge(
    layer: AttentionWeights,
) -> tuple[Float[Array, "heads width width"], Float[Array, "heads width width"]]:
    """The two products that a linear layer depends on: query key^T and value output.

    Args:
      layer: weights of one layer, without the layer axis.

    Returns:
      ``(bilinear, value)``, each ``[heads, width, width]``: the score of query e against token c
      is e^T bilinear c, and c adds c^T value to it, times that score.

    Example:
      >>> import jax
      >>> from gradkin import icl
      >>> weights = icl.gd_attention(num_inputs=1, num_outputs=1, num_context=1, rate=0.5)
      >>> bilinear, value = icl.merge(jax.tree.map(lambda w: w[0], weights))
      >>> bilinear[0].tolist(), value[0].tolist()
      ([[1.0, 0.0], [0.0, 0.0]], [[0.0, 0.0], [0.0, -0.5]])
    """
    bilinear = jnp.einsum("hak,hbk->hab", layer.query, layer.key)
    return bilinear, jnp.einsum("hak,hkb->hab", layer.value, layer.output)
