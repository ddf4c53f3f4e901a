"""A small decoder-only transformer as Flax NNX modules; importing this imports flax."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from gradkin import checks
from gradkin.matrices.contraction import at_least_float32
from gradkin.models.rotary import rotary_embedding
from gradkin.typing import Array, ArrayLike

try:
    from flax import nnx
except ImportError as error:
    raise ImportError("gradkin.models needs Flax: pip install 'gradkin[nn]'.") from error


class Decoder(nnx.Module):
    """A language model: embedding, layers of causal attention and a perceptron, head.

    Each layer adds ``attention(norm(x))`` and then ``down(gelu(up(norm(x))))`` to its input; the
    norms divide by the root mean square, positions enter by rotation of queries and keys, there are
    no biases, and the head is not tied to the embedding. The layers are one stacked module, run by
    one scan: compile time does not grow with ``depth``.

    With ``lora_rank > 0`` the projections of attention, named q, k, v and o, have adapters
    ``(alpha / rank) A B`` beside them, held as `nnx.LoRAParam`; ``B`` starts at zero. `add_lora`
    gives a trained decoder new adapters.

    Calling a decoder maps tokens ``[..., T]`` to logits ``[..., T, V]``, float32 or wider: those at
    position ``t`` are a function of the tokens up to ``t`` and predict the next. A token outside
    ``[0, V)`` makes its whole sequence NaN.

    Args:
      vocabulary_size: number of tokens ``V``.
      width: channels between layers; a multiple of ``2 num_heads``.
      depth: number of layers.
      num_heads: attention heads.
      mlp_width: channels inside the perceptron; None is four times the width.
      max_length: the longest sequence that is accepted.
      lora_rank: rank of the adapters; 0 makes none.
      lora_alpha: their scale times their rank; None is the rank.
      dtype: what is computed in, such as `jnp.bfloat16`; parameters keep their own. None computes
        in the embedding's dtype.
      rngs: where the first parameters come from, such as ``nnx.Rngs(0)``.

    Raises:
      ValueError: sizes that are not positive or do not divide; tokens that are too many.
      TypeError: tokens that are not integers.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from flax import nnx
      >>> import gradkin
      >>> from gradkin import models
      >>> decoder = models.Decoder(10, width=8, depth=1, num_heads=2, lora_rank=1, rngs=nnx.Rngs(0))
      >>> graph, lora, frozen = nnx.split(decoder, nnx.LoRAParam, ...)
      >>> def loss_fn(lora, tokens):
      ...     logits = nnx.merge(graph, lora, frozen)(tokens)
      ...     return models.token_loss(logits, tokens, tokens > 0)
      >>> G = gradkin.per_example_grads(loss_fn)(lora, jnp.array([[1, 2, 3], [4, 5, 0]]))
      >>> G.shape  # four adapters of 8 + 8 numbers
      (2, 64)

    References:
      Vaswani et al. (2017), "Attention Is All You Need". :cite:`vaswani:17`

      Zhang & Sennrich (2019), "Root Mean Square Layer Normalization", arXiv:1910.07467.
      :cite:`zhang:19`

      Hu et al. (2021), "LoRA: Low-Rank Adaptation of Large Language Models", arXiv:2106.09685.
      :cite:`hu:21`
    """

    def __init__(
        self,
        vocabulary_size: int,
        *,
        width: int = 64,
        depth: int = 2,
        num_heads: int = 4,
        mlp_width: int | None = None,
        max_length: int = 256,
        lora_rank: int = 0,
        lora_alpha: float | int | None = None,
        dtype: Any = None,
        rngs: nnx.Rngs,
    ):
        mlp_width = 4 * width if mlp_width is None else mlp_width
        checks.positive(
            vocabulary_size=vocabulary_size,
            width=width,
            depth=depth,
            num_heads=num_heads,
            mlp_width=mlp_width,
            max_length=max_length,
        )
        checks.non_negative(lora_rank=lora_rank)
        if width % (2 * num_heads):
            raise ValueError(
                f"Expected 2 num_heads to divide width, got num_heads={num_heads} and "
                f"width={width}."
            )
        lora_alpha = lora_rank if lora_alpha is None else lora_alpha
        # Hashable, so that it is part of the graph definition.
        self.sizes = (vocabulary_size, width, depth, num_heads, mlp_width, max_length)
        self.lora_rank = lora_rank
        self.dtype = dtype
        self.embedding = nnx.Param(jax.random.normal(rngs.params(), (vocabulary_size, width)))
        self.layers = Layer(
            width, num_heads, mlp_width, stack=(depth,), rank=lora_rank, alpha=lora_alpha, rngs=rngs
        )
        self.norm = nnx.Param(jnp.ones(width))
        self.head = Projection(width, vocabulary_size, rngs=rngs)

    def __call__(
        self, tokens: Int[ArrayLike, "*batch tokens"]
    ) -> Float[Array, "*batch tokens vocabulary"]:
        """Logits ``[..., T, V]`` of tokens ``[..., T]``."""
        longest = self.sizes[-1]
        if not jnp.issubdtype(jnp.result_type(tokens), jnp.integer):
            raise TypeError(f"Expected integer tokens, got dtype {jnp.result_type(tokens)}.")
        if not np.ndim(tokens) or not 1 <= np.shape(tokens)[-1] <= longest:
            raise ValueError(
                f"Expected tokens [..., T] with T from 1 to max_length={longest}, got tokens.shape="
                f"{np.shape(tokens)}."
            )
        tokens = jnp.asarray(tokens).astype(np.int32)
        embedding = self.embedding[...]
        x = embedding.astype(self.dtype or embedding.dtype)
        # Negative numbers are no tokens, though NumPy would count them from the end.
        tokens = jnp.where(tokens < 0, len(x), tokens)
        x = x.at[tokens].get(mode="fill", fill_value=jnp.nan)
        graph, layers = nnx.split(self.layers)

        def layer(x, state):
            return nnx.merge(graph, state)(x), None

        x, _ = jax.lax.scan(layer, x, layers)
        return self.head(rms_norm(x, self.norm[...]), wide=True)


class Layer(nnx.Module):
    """Attention and a perceptron, each added to what came in; parameters are made for a stack."""

    def __init__(
        self,
        width: int,
        num_heads: int,
        mlp_width: int,
        *,
        stack: tuple[int],
        rank: int,
        alpha: float | int,
        rngs: nnx.Rngs,
    ):
        # What the layers add to one another keeps its size.
        shrunk = (2 * stack[0]) ** -0.5
        make = functools.partial(Projection, stack=stack, rngs=rngs)
        adapted = functools.partial(make, width, width, rank=rank, alpha=alpha)
        self.num_heads = num_heads
        self.norm1, self.norm2 = (nnx.Param(jnp.ones((*stack, width))) for _ in range(2))
        self.q, self.k, self.v, self.o = adapted(), adapted(), adapted(), adapted(gain=shrunk)
        self.up, self.down = make(width, mlp_width), make(mlp_width, width, gain=shrunk)

    def __call__(self, x: Array) -> Array:
        """``[..., T, width]`` to the same."""
        h = rms_norm(x, self.norm1[...])
        heads = (*x.shape[:-1], self.num_heads, x.shape[-1] // self.num_heads)
        q, k, v = (jnp.reshape(project(h), heads) for project in (self.q, self.k, self.v))
        positions = np.arange(x.shape[-2])
        mixed = attend(rotary_embedding(q, positions), rotary_embedding(k, positions), v)
        x = x + self.o(jnp.reshape(mixed, x.shape))
        return x + self.down(jax.nn.gelu(self.up(rms_norm(x, self.norm2[...]))))


class Projection(nnx.Module):
    """``x W + (alpha / rank) (x A) B``, the second term only where the rank is not 0."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        stack: tuple[int, ...] = (),
        gain: float = 1.0,
        rank: int = 0,
        alpha: float | int = 0,
        rngs: nnx.Rngs,
    ):
        def normal(columns: int) -> Array:
            numbers = jax.random.normal(rngs.params(), (*stack, inputs, columns))
            return numbers * inputs**-0.5

        self.kernel = nnx.Param(normal(outputs) * gain)
        self.scale = alpha / rank if rank else None
        if rank:
            self.lora_a = nnx.LoRAParam(normal(rank))
            self.lora_b = nnx.LoRAParam(jnp.zeros((*stack, rank, outputs)))

    def __call__(self, x: Array, *, wide: bool = False) -> Array:
        """``[..., inputs]`` to ``[..., outputs]`` in the dtype of ``x``, or at least float32."""
        dtype = at_least_float32(x.dtype) if wide else x.dtype
        kernel = self.kernel[...].astype(x.dtype)
        y = jnp.matmul(x, kernel, preferred_element_type=dtype)
        if self.scale is None:
            return y
        a, b = self.lora_a[...].astype(x.dtype), self.lora_b[...].astype(x.dtype)
        return y + ((x @ a) @ b * self.scale).astype(dtype)


def rms_norm(x: Array, scale: Array) -> Array:
    """``x / rms(x) * scale`` along the last axis, computed in float32 or wider."""
    wide = x.astype(at_least_float32(x.dtype))
    square = jnp.mean(wide**2, axis=-1, keepdims=True)
    normal = (wide * jax.lax.rsqrt(square + 1e-6)).astype(x.dtype)
    return normal * jnp.broadcast_to(scale.astype(x.dtype), x.shape)


def attend(q: Array, k: Array, v: Array) -> Array:
    """Causal softmax attention: ``[..., T, H, D]`` three times to the same; weights in float32."""
    wide = at_least_float32(q.dtype)
    scores = jnp.einsum("...thd,...shd->...hts", q, k, preferred_element_type=wide)
    causal = np.tril(np.ones(scores.shape[-2:], bool))
    scores = jnp.where(jnp.broadcast_to(causal, scores.shape), scores * q.shape[-1] ** -0.5, -1e30)
    return jnp.einsum("...hts,...shd->...thd", jax.nn.softmax(scores).astype(v.dtype), v)


def add_lora(
    decoder: Decoder, rank: int, *, alpha: float | int | None = None, rngs: nnx.Rngs
) -> Decoder:
    """Give a decoder low-rank adapters on q, k, v and o (Hu et al. 2021).

    ``W`` becomes ``W + (alpha / rank) A B`` with normal ``A`` of variance one over its inputs and
    ``B = 0``: the new decoder computes what the old one does until its adapters are trained.

    Args:
      decoder: without adapters; it is not changed.
      rank: >= 1.
      alpha: the adapters' scale times their rank; None is the rank.
      rngs: where ``A`` comes from.

    Returns:
      A decoder with the parameters of the old one, and adapters to be split off:
      ``nnx.split(decoder, nnx.LoRAParam, ...)``.

    Raises:
      ValueError: a decoder that has adapters, or a rank below 1.

    Example:
      >>> import jax
      >>> from flax import nnx
      >>> from gradkin import models
      >>> @jax.jit
      ... def adapted():
      ...     decoder = models.Decoder(10, width=8, depth=1, num_heads=2, rngs=nnx.Rngs(0))
      ...     return nnx.split(models.add_lora(decoder, 2, rngs=nnx.Rngs(1)), nnx.LoRAParam, ...)
      >>> graph, lora, frozen = adapted()
      >>> sum(x.size for x in jax.tree.leaves(lora))  # q, k, v and o: 8 x 2 and 2 x 8 each
      128

    References:
      Hu et al. (2021), "LoRA: Low-Rank Adaptation of Large Language Models", arXiv:2106.09685.
      :cite:`hu:21`
    """
    checks.positive(rank=rank)
    if decoder.lora_rank:
        raise ValueError(
            f"Expected a decoder without adapters, got decoder.lora_rank={decoder.lora_rank}."
        )
    vocabulary_size, width, depth, num_heads, mlp_width, max_length = decoder.sizes
    adapted = Decoder(
        vocabulary_size,
        width=width,
        depth=depth,
        num_heads=num_heads,
        mlp_width=mlp_width,
        max_length=max_length,
        lora_rank=rank,
        lora_alpha=alpha,
        dtype=decoder.dtype,
        rngs=rngs,
    )
    nnx.update(adapted, nnx.state(decoder))
    return adapted
