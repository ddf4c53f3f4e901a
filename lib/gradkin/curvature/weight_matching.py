"""Weight matching: the permutation that brings one network's weights closest to another's."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from gradkin import checks
from gradkin.curvature.assignment import linear_assignment
from gradkin.curvature.permutations import (
    Factored,
    PermutationSpec,
    checked_permutation,
    factored,
    permuted,
)
from gradkin.typing import Array, PRNGKey, PyTree


class Matching(NamedTuple):
    """A permutation of b's units, and how it was found.

    Attributes:
      permutation: name -> ``[size]`` int32, for `apply_permutation`.
      objective: ``[max_sweeps + 1]``, the inner product of a with the permuted b, over what can be
        permuted: at the start and after each sweep; the last value is repeated.
      sweeps: how many sweeps were made; the last one changed nothing, unless they were too few.
    """

    permutation: dict[str, Array]
    objective: Array
    sweeps: Array


def weight_matching(
    key: PRNGKey,
    spec: PermutationSpec,
    a: PyTree,
    b: PyTree,
    *,
    init: Mapping[str, Any] | None = None,
    max_sweeps: int = 100,
    solver: str = "scipy",
) -> Matching:
    """Permute b's units so that its weights come close to a's (Ainsworth et al. 2023, alg. 1).

    .. math:: \\arg\\min_\\pi \\|a - \\pi(b)\\|^2
        = \\arg\\max_\\pi \\sum_l \\langle W^a_l, P_l W^b_l P_{l-1}^\\top \\rangle
        + \\langle b^a_l, P_l b^b_l \\rangle

    Ascent over one permutation at a time, in a new random order in every sweep, until a sweep
    changes nothing: with the others fixed the objective is a linear assignment with scores

    .. math:: S_l = W^a_l P_{l-1} W^{b\\top}_l + b^a_l b^{b\\top}_l
        + W^{a\\top}_{l+1} P_{l+1} W^b_{l+1}.

    Args:
      key: draws the orders.
      spec: which axes move together.
      a: parameters that stay.
      b: parameters to permute, of the same structure.
      init: the permutation to start from; default the identity.
      max_sweeps: the most sweeps, >= 1.
      solver: of the linear assignments, see `linear_assignment`.

    Returns:
      `Matching`. The objective never falls, so from the identity ``|a - pi(b)| <= |a - b|``.
      Non-finite weights leave the identity, or ``init``.

    Raises:
      ValueError: parameters that are not the spec's, a spec that permutes nothing, a wrong
        ``init``.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from gradkin import curvature
      >>> a = {"w": jnp.array([[1.0, 2.0, 3.0]])}
      >>> spec = curvature.permutation_spec(a, {"w": (None, "hidden")})
      >>> b = {"w": jnp.array([[3.1, 0.9, 2.0]])}
      >>> found = curvature.weight_matching(jax.random.key(0), spec, a, b)
      >>> found.permutation["hidden"].tolist()
      [1, 2, 0]

    References:
      Ainsworth, Hayase & Srinivasa (2023), "Git Re-Basin", arXiv:2209.04836, algorithm 1; Ito,
      Yamada & Kumagai (2025), arXiv:2402.04051. :cite:`ainsworth:23`
      :cite:`lmc-weight-matching`

    Note:
      Where a permutation moves both axes of a parameter (a residual stream, a recurrent kernel) the
      objective is quadratic in it. Its scores are then the derivative at the present permutation,
      and a proposal that does not raise the objective itself is not taken.
    """
    checks.positive(max_sweeps=max_sweeps)
    left, right = moving(spec, a, name="a"), moving(spec, b, name="b")
    names = tuple(spec.sizes)
    if not names:
        raise ValueError("Expected a spec that permutes something, got one without names.")
    start = spec.identity() if init is None else checked_permutation(spec, init)

    def objective(permutation: dict[str, Array]) -> Array:
        products = [
            jnp.vdot(x.value, permuted(y, permutation), precision=lax.Precision.HIGHEST)
            for x, y in zip(left, right)
        ]
        return jnp.sum(jnp.stack(products))

    # Less than this is rounding, and sweeps would not end.
    least = 8 * norm(left) * norm(right)
    least = least * jnp.finfo(least.dtype).eps

    def visit(name: str):
        def branch(permutation, best):
            proposed = permutation | {
                name: linear_assignment(scores(name, left, right, permutation), solver=solver)
            }
            value = objective(proposed)
            better = value > best + least
            chosen = jnp.where(better, proposed[name], permutation[name])
            return permutation | {name: chosen}, jnp.where(better, value, best)

        return branch

    branches = [visit(name) for name in names]

    def sweep(state):
        key, permutation, history, count, _ = state
        key, draw = jax.random.split(key)
        order = jax.random.permutation(draw, len(names))
        one = lambda carry, index: (lax.switch(index, branches, *carry), None)
        before = history[-1]
        (permutation, best), _ = lax.scan(one, (permutation, before), order)
        later = jnp.arange(max_sweeps + 1) > count
        return key, permutation, jnp.where(later, best, history), count + 1, best > before

    def more(state):
        *_, count, changed = state
        return changed & (count < max_sweeps)

    first = jnp.full(max_sweeps + 1, objective(start))
    state = (key, start, first, jnp.zeros((), np.int32), jnp.ones((), bool))
    _, permutation, history, sweeps, _ = lax.while_loop(more, sweep, state)
    return Matching(permutation, history, sweeps)


def moving(spec: PermutationSpec, params: PyTree, *, name: str) -> list[Factored]:
    """The parameters that move, by factor, at least in float32 and all of one dtype."""
    found = [one for one in factored(spec, params, name=name) if any(one.names)]
    dtype = np.result_type(np.float32, *(one.value.dtype for one in found))
    return [Factored(one.value.astype(dtype), one.names) for one in found]


def scores(
    name: str, left: list[Factored], right: list[Factored], permutation: Mapping[str, Array]
) -> Array:
    """``[n, n]``: what the objective gains where a's unit i meets b's unit j, all else fixed."""
    parts = []
    for x, y in zip(left, right):
        for axis in (axis for axis, each in enumerate(x.names) if each == name):
            rows = jnp.moveaxis(x.value, axis, 0).reshape(x.value.shape[axis], -1)
            columns = jnp.moveaxis(permuted(y, permutation, but=axis), axis, 0).reshape(rows.shape)
            parts.append(jnp.matmul(rows, columns.T, precision=lax.Precision.HIGHEST))
    return jnp.sum(jnp.stack(parts), axis=0)


def norm(leaves: list[Factored]) -> Array:
    return jnp.sqrt(jnp.sum(jnp.stack([jnp.sum(jnp.square(leaf.value)) for leaf in leaves])))
