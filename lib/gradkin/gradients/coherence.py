"""Coherence: how much of a step along one example's gradient the other examples profit from."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from gradkin import checks
from gradkin.typing import Array, IntScalar, PyTree, Scalar


class CoherenceStats(NamedTuple):
    """What coherence is a function of: two sums over examples and their number.

    Statistics of disjoint batches are added with `merge`; never average the ratios of batches.

    Attributes:
      sum_grads: sum of the per-example gradients, a pytree like the parameters, at least float32.
      sum_squares: sum of their squared norms, one scalar per leaf of the parameters.
      num_examples: how many examples; an int, or an int32 scalar under a transformation.
    """

    sum_grads: PyTree
    sum_squares: PyTree
    num_examples: IntScalar

    def merge(self, other: "CoherenceStats") -> "CoherenceStats":
        """Statistics of both batches together."""
        return CoherenceStats(
            jax.tree.map(jnp.add, self.sum_grads, other.sum_grads),
            jax.tree.map(jnp.add, self.sum_squares, other.sum_squares),
            self.num_examples + other.num_examples,
        )

    def m_coherence(self, *, by: str | None = None) -> Any:
        """``|sum_i g_i|^2 / sum_i |g_i|^2``, in [0, m]; 1 for orthogonal gradients.

        How many examples, on average, a small step along one example's gradient helps, the example
        itself included. All-zero gradients give 0.

        Args:
          by: None for one number; "leaf" for a pytree like the parameters; "layer" for a dict that
            groups the parameters whose paths differ in the last name only.
        """
        return jax.tree.map(_ratio, *self._squares(by))

    def coherence(self, *, by: str | None = None) -> Any:
        """``alpha = |mean_i g_i|^2 / mean_i |g_i|^2``, in [0, 1]; 1/m for orthogonal gradients."""
        return jax.tree.map(lambda value: value / self._number(value), self.m_coherence(by=by))

    def unbiased_coherence(self, *, by: str | None = None) -> Any:
        """``(m alpha - 1) / (m - 1)``: alpha without the bias of m; 0 for orthogonal gradients.

        The ratio of unbiased estimates of ``|E g|^2`` and ``E|g|^2``, so it may be negative.
        All-zero gradients give 0.

        Raises:
          ValueError: fewer than two examples (NaN where their number is traced).
        """
        if checks.is_concrete(self.num_examples) and self.num_examples < 2:
            raise ValueError(f"Expected at least 2 examples, got {int(self.num_examples)}.")

        def corrected(of_sum: Array, squares: Array) -> Array:
            m = self._number(squares)
            excess = jnp.where(squares == 0, jnp.zeros_like(squares), _ratio(of_sum, squares) - 1)
            return excess / (m - 1)

        return jax.tree.map(corrected, *self._squares(by))

    def shares(self, *, by: str = "leaf") -> Any:
        """``E|g^(l)|^2 / E|g|^2``: the weights with which the parts' coherences sum to the whole's.

        All-zero gradients give 0.
        """
        _, squares = self._squares(by)
        total = _total(squares)
        return jax.tree.map(lambda part: _ratio(part, total.astype(part.dtype)), squares)

    def _squares(self, by: str | None) -> tuple[Any, Any]:
        """``|sum_i g_i|^2`` and ``sum_i |g_i|^2``, grouped."""
        checks.one_of((None, "leaf", "layer"), by=by)
        of_sum = jax.tree.map(_square, self.sum_grads)
        group = {None: _total, "leaf": lambda tree: tree, "layer": _by_layer}[by]
        return group(of_sum), group(self.sum_squares)

    def _number(self, like: Array) -> Array:
        return jnp.asarray(self.num_examples).astype(like.dtype)


def coherence_stats(G: Any) -> CoherenceStats:
    """Statistics that coherence is read off (Chatterjee & Zielinski 2022, sec. 2).

    .. math:: \\alpha = \\frac{\\|E_i\\, g_i\\|^2}{E_i \\|g_i\\|^2}
        = \\frac{E_{i,j}\\, \\langle g_i, g_j \\rangle}{E_i\\, \\langle g_i, g_i \\rangle}

    Takes the sum and the norms of the rows, so it forms no gradient of an example, and with
    ``batch_size`` the number of examples is not bounded by memory.

    Args:
      G: per-example gradients; its row weights and selection count.

    Returns:
      `CoherenceStats`: read off with ``.m_coherence()``, ``.coherence()``,
      ``.unbiased_coherence()``, each also ``by="leaf"`` and ``by="layer"``.

    Example:
      >>> import jax.numpy as jnp
      >>> import gradkin
      >>> from gradkin import gradients
      >>> loss = lambda w, x: w @ x  # the gradient is x
      >>> x = jnp.array([[1.0, 1.0, 0.0], [1.0, 0.0, 1.0]])
      >>> stats = gradients.coherence_stats(gradkin.per_example_grads(loss)(jnp.zeros(3), x))
      >>> float(stats.m_coherence()), float(stats.coherence()), float(stats.unbiased_coherence())
      (1.5, 0.75, 0.5)

    References:
      Chatterjee & Zielinski (2022), "On the Generalization Mystery in Deep Learning",
      arXiv:2203.10036. :cite:`coherence-metric`

    Note:
      The plain value depends on the number of examples: compare at equal m, or use the unbiased
      one. Weight decay in the loss adds one vector to every row and so raises coherence: leave
      it out.
    """
    sum_squares = jax.tree.map(lambda n: jnp.sum(_wide(n)), G.squared_norms(by="leaf"))
    return CoherenceStats(jax.tree.map(_wide, G.sum()), sum_squares, len(G))


def coherence_of_means(alpha: Scalar, *, batch_size: int) -> Array:
    """Coherence of means of ``b`` independent examples, from that of the examples.

    .. math:: \\alpha_b = \\frac{b\\,\\alpha}{1 + (b - 1)\\,\\alpha}

    Args:
      alpha: coherence of single examples, in the population (use the unbiased estimate).
      batch_size: examples ``b`` in each mean, >= 1.

    Returns:
      Coherence of the means. Exact for population values and independent examples.

    Raises:
      ValueError: ``batch_size`` not positive.

    Example:
      >>> from gradkin import gradients
      >>> float(gradients.coherence_of_means(0.25, batch_size=3))
      0.5

    References:
      Chatterjee & Zielinski (2022), arXiv:2203.10036. :cite:`coherence-metric`
    """
    checks.positive(batch_size=batch_size)
    b = batch_size
    alpha = jnp.asarray(alpha)
    return b * alpha / (1 + (b - 1) * alpha)


def coherence_from_means(alpha: Scalar, *, batch_size: int) -> Array:
    """Coherence of single examples, from that of means of ``b`` independent examples.

    .. math:: \\alpha = \\frac{\\alpha_b}{b - (b - 1)\\,\\alpha_b}

    Tells coherence from the gradients of micro-batches, where those of examples cost too much.

    Args:
      alpha: coherence of the means (use the unbiased estimate over several means).
      batch_size: examples ``b`` in each mean, >= 1.

    Returns:
      Coherence of the examples: the inverse of `coherence_of_means`.

    Raises:
      ValueError: ``batch_size`` not positive.

    Example:
      >>> from gradkin import gradients
      >>> float(gradients.coherence_from_means(0.5, batch_size=3))
      0.25

    References:
      Chatterjee & Zielinski (2022), arXiv:2203.10036. :cite:`coherence-metric`
    """
    checks.positive(batch_size=batch_size)
    b = batch_size
    alpha = jnp.asarray(alpha)
    return alpha / (b - (b - 1) * alpha)


def example_alignment(G: Any) -> Float[Array, " examples"]:
    """How far each example goes along with the average: ``<g_i, mean> / |mean|^2``.

    Its mean over the examples is exactly 1. Above 1, a step along the mean lowers an example's
    loss more than average; below 0 it raises it.

    Args:
      G: per-example gradients, ``[B, P]``.

    Returns:
      ``[B]``; zeros where the mean gradient is zero.

    Example:
      >>> import jax.numpy as jnp
      >>> import gradkin
      >>> from gradkin import gradients
      >>> loss = lambda w, x: w * x  # the gradient is x
      >>> G = gradkin.per_example_grads(loss)(jnp.zeros(()), jnp.array([3.0, -1.0]))
      >>> gradients.example_alignment(G).tolist()
      [3.0, -1.0]

    References:
      Chatterjee & Zielinski (2022), arXiv:2203.10036. :cite:`coherence-metric`
    """
    mean = G.mean()
    along = G @ mean
    square = _total(jax.tree.map(_square, mean)).astype(along.dtype)
    return _ratio(along, jnp.broadcast_to(square, along.shape))


def _wide(x: Array) -> Array:
    """At least float32: squares of small gradients vanish in half precision."""
    return x.astype(np.promote_types(x.dtype, np.float32))


def _square(x: Array) -> Array:
    # Not a dot product: accelerators multiply those in less than float32.
    return jnp.sum(jnp.square(_wide(x)))


def _ratio(a: Array, b: Array) -> Array:
    """``a / b`` for ``b >= 0``; 0 where ``b`` is 0, and a zero derivative there; NaN stays NaN."""
    zero = b == 0
    return jnp.where(zero, jnp.zeros_like(a), a / jnp.where(zero, jnp.ones_like(b), b))


def _total(tree: PyTree) -> Array:
    values = jax.tree.leaves(tree)
    dtype = functools.reduce(np.promote_types, [value.dtype for value in values])
    return functools.reduce(jnp.add, [value.astype(dtype) for value in values])


def _by_layer(tree: PyTree) -> dict[str, Array]:
    groups: dict[str, list[Array]] = {}
    for path, value in jax.tree_util.tree_flatten_with_path(tree)[0]:
        name = jax.tree_util.keystr(path[:-1], simple=True, separator="/") or "."
        groups.setdefault(name, []).append(value)
    return {name: _total(values) for name, values in groups.items()}
