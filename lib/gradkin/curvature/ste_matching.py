"""Matching by the loss at the midpoint, with a straight-through estimator."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from gradkin import checks
from gradkin.curvature.interpolation import interpolate
from gradkin.curvature.permutations import PermutationSpec, apply_permutation
from gradkin.curvature.weight_matching import weight_matching
from gradkin.optim import update
from gradkin.typing import Array, PRNGKey, PyTree, Scalar


class StraightThrough(NamedTuple):
    """A permutation of b's units, and the losses on the way to it.

    Attributes:
      permutation: name -> ``[size]`` int32, the one of the lowest loss.
      losses: ``[num_steps]``, at the midpoint of a and the permuted b in every step.
    """

    permutation: dict[str, Array]
    losses: Array


def ste_matching(
    key: PRNGKey,
    spec: PermutationSpec,
    a: PyTree,
    b: PyTree,
    loss_fn: Callable[[PyTree], Scalar],
    *,
    init: PyTree = None,
    optimizer: optax.GradientTransformation | None = None,
    num_steps: int = 400,
    max_sweeps: int = 10,
    solver: str = "scipy",
) -> StraightThrough:
    """Permute b's units so that the midpoint's loss is low (Ainsworth et al. 2023, alg. 3).

    .. math:: \\arg\\min_\\pi L\\left(\\tfrac12 (a + \\pi(b))\\right)

    Latent weights are projected to the nearest permutation of b by weight matching; the loss is
    taken at the midpoint with that, and its gradient passes straight through to the latent weights.

    Args:
      key: draws the orders of weight matching.
      spec: which axes move together.
      a: parameters that stay.
      b: parameters to permute.
      loss_fn: ``params -> scalar``, on training data.
      init: the first latent weights; default a, whose projection is the weight matching.
      optimizer: of the latent weights; default SGD of rate 0.05 and momentum 0.9.
      num_steps: projections and gradient steps, >= 1.
      max_sweeps: of each projection, which starts from the one before.
      solver: of the linear assignments.

    Returns:
      `StraightThrough`: the projection of the lowest loss of all steps. Steps of a non-finite loss
      are not chosen; where there is no other, the identity.

    Raises:
      ValueError: no step, parameters or ``init`` that are not the spec's.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from gradkin import curvature
      >>> a, b = {"w": jnp.array([1.0, 2.0])}, {"w": jnp.array([2.0, 1.0])}
      >>> spec = curvature.permutation_spec(a, {"w": ("hidden",)})
      >>> loss = lambda params: jnp.sum((params["w"] - a["w"]) ** 2)
      >>> found = curvature.ste_matching(jax.random.key(0), spec, a, b, loss, num_steps=3)
      >>> found.permutation["hidden"].tolist(), found.losses.tolist()
      ([1, 0], [0.0, 0.0, 0.0])

    References:
      Ainsworth, Hayase & Srinivasa (2023), "Git Re-Basin", arXiv:2209.04836, algorithm 3.
      :cite:`ainsworth:23`

    Note:
      The paper says little of the latent weights' start; here it is the caller's, since from a the
      search begins at the weight matching and from elsewhere it does not.
    """
    checks.positive(num_steps=num_steps)
    optimizer = optax.sgd(0.05, momentum=0.9) if optimizer is None else optimizer
    latent = jax.tree.map(jnp.asarray, a if init is None else init)
    checks.same_structure(latent, a, name="init", like_name="a")

    def step(state, key):
        latent, opt_state, permutation, best, lowest = state
        found = weight_matching(
            key, spec, latent, b, init=permutation, max_sweeps=max_sweeps, solver=solver
        )
        permutation = found.permutation
        middle = interpolate(a, apply_permutation(spec, permutation, b), 0.5)
        loss, grads = jax.value_and_grad(loss_fn)(middle)
        better = loss < lowest
        best = jax.tree.map(lambda new, old: jnp.where(better, new, old), permutation, best)
        grads = jax.tree.map(lambda grad: grad / 2, grads)  # half of the midpoint is b's
        latent, opt_state = update(optimizer, grads, opt_state, latent)
        return (latent, opt_state, permutation, best, jnp.where(better, loss, lowest)), loss

    identity = spec.identity()
    lowest = jnp.full((), jnp.inf, jax.eval_shape(loss_fn, a).dtype)
    state = (latent, optimizer.init(latent), identity, identity, lowest)
    (_, _, _, best, _), losses = jax.lax.scan(step, state, jax.random.split(key, num_steps))
    return StraightThrough(best, losses)
