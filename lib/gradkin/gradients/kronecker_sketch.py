"""A sketch of matrices from both sides, which never forms a gradient that is a product."""

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gradkin.gradients.sketches import blockwise, check, leaf_key, signs
from gradkin.matrices.sketching import LeafGradients
from gradkin.pytrees import register_dataclass
from gradkin.typing import Array, PRNGKey


class Plan(NamedTuple):
    """A parameter as a matrix, and the ``p x q`` numbers it becomes."""

    cut: int
    rows: int
    columns: int
    p: int
    q: int


@functools.partial(register_dataclass, data_fields=["key"], meta_fields=["size", "combine"])
@dataclasses.dataclass(frozen=True)
class KroneckerSketch:
    """``L^T g R``, ``p x q = k`` numbers of a gradient that is a matrix (LoGra's projection).

    With ``g = sum_t a_t d_t^T`` it is ``sum_t (L^T a_t) (R^T d_t)^T``: the factors are projected,
    the gradient is never formed. Cost ``B T (p I + q O)`` for ``T`` positions, ``I`` inputs and
    ``O`` outputs, instead of ``B I O k``. Unbiased; the price is variance, about
    ``(2 / p + 2 / q) |g|^4`` for the square of a gradient of rank one.

    A parameter is cut into rows and columns between the axes that make it most nearly square. A
    side no longer than ``sqrt(k)`` (that of a low-rank adapter, say) is kept whole, with random
    signs, and the other gets the rest of ``k``. Parameters of at most ``k`` numbers, and vectors,
    are projected as by `RademacherSketch`.

    Attributes:
      key: PRNG key.
      size: ``k``; a square number wastes nothing.
      combine: "concat" is LoGra's, a block for each parameter; "sum" adds them. See
        `RademacherSketch`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import gradkin
      >>> from gradkin import gradients
      >>> loss = lambda w, x: jnp.sum(jnp.tanh(x @ w))
      >>> x = jax.random.normal(jax.random.key(0), (4, 50))
      >>> G = gradkin.per_example_grads(loss)(jnp.zeros((50, 40)), x)
      >>> G.sketch(gradients.KroneckerSketch(jax.random.key(1), 256)).shape
      (4, 256)

    References:
      Choe et al. (2024), "What is Your Data Worth to GPT? LLM-Scale Data Valuation with Influence
      Functions", arXiv:2405.13954, sec. 3. :cite:`choe:24`
    """

    key: Any
    size: int
    combine: str = dataclasses.field(default="sum", kw_only=True)

    def __post_init__(self) -> None:
        check(self)

    def of_leaf(self, leaf: LeafGradients) -> Array:
        """One parameter's projection, ``[B, size]``."""
        key = leaf_key(self.key, leaf.path)
        plan = plan_of(leaf.shape, self.size)
        if plan is None:
            return blockwise(leaf.rows(), key, self.size, signs)
        for_left, for_right = jax.random.split(key)
        left = side(for_left, plan.rows, plan.p, leaf.dtype)
        right = side(for_right, plan.columns, plan.q, leaf.dtype)
        value = leaf.two_sided(left, right, plan.cut).reshape((leaf.num_examples, -1))
        return jnp.pad(value, ((0, 0), (0, self.size - plan.p * plan.q)))


def side(key: PRNGKey, length: int, size: int, dtype: Any) -> Array:
    """``[length, size]`` with ``E[S S^T] = I``; random signs on the diagonal if square."""
    if length == size:
        return jnp.diag(signs(key, (1, size), dtype)[0])
    return signs(key, (length, size), dtype) / np.sqrt(size).astype(dtype)


def plan_of(shape: tuple[int, ...], size: int) -> Plan | None:
    """How a parameter is projected; None if as a vector."""
    cut = most_square(shape)
    rows, columns = math.prod(shape[:cut]), math.prod(shape[cut:])
    if cut == 0 or rows * columns <= size or min(rows, columns) == 1:
        return None
    root = math.isqrt(size)
    if min(rows, columns) > root:
        return Plan(cut, rows, columns, root, size // root)
    if rows <= columns:
        return Plan(cut, rows, columns, rows, size // rows)
    return Plan(cut, rows, columns, size // columns, columns)


def most_square(shape: tuple[int, ...]) -> int:
    """How many leading axes make the rows of the most nearly square matrix; 0 for a vector."""
    cuts = range(1, len(shape))
    longest = lambda cut: max(math.prod(shape[:cut]), math.prod(shape[cut:]))
    return min(cuts, key=longest, default=0)
