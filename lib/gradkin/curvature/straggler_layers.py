"""Straggler layers: sharpness by layer, which layers stand out, and sparsity in them."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gradkin import checks
from gradkin.curvature.apgd import auto_pgd
from gradkin.curvature.interpolation import Groups, check_layers, layer_names, leaf_layers
from gradkin.typing import Array, PRNGKey, PyTree, Scalar


def layerwise_sharpness(
    key: PRNGKey,
    fun: Callable[[PyTree], Array],
    params: PyTree,
    *,
    rho: Scalar,
    p: float | int = 2,
    scale: PyTree | None = None,
    num_steps: int = 20,
    num_restarts: int = 1,
    groups: Groups = "layer",
) -> dict[str, Array]:
    """Worst-case sharpness of each layer, the others held still (Abdollahpoorrostam 2024).

    .. math:: S_l = \\max_{\\|d_l / c_l\\|_p \\le \\rho} L(w + d_l) - L(w)

    Args:
      key: PRNG key of the starts.
      fun: ``fun(params)`` -> scalar loss of one fixed batch, differentiable.
      params: ``w``, pytree of floating-point arrays.
      rho: radius, > 0, the same for every layer: let ``scale`` tell their sizes apart.
      p: 2 or infinity (`math.inf`).
      scale: ``c >= 0``, a pytree like ``params``, such as `adaptive_scale`; None takes ones.
      num_steps: gradients per layer and restart, of `auto_pgd`.
      num_restarts: starts of `auto_pgd`.
      groups: what a layer is, as in `layer_names`.

    Returns:
      Name of a layer -> its sharpness, >= 0. The true maxima are at most that of all layers
      together, at the same radius.

    Raises:
      ValueError: unknown groups, or as `auto_pgd`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from gradkin import curvature
      >>> params = {"a": {"w": jnp.zeros(2)}, "b": {"w": jnp.zeros(2)}}
      >>> loss = lambda w: 3.0 * w["a"]["w"][0] + 4.0 * w["b"]["w"][1]
      >>> found = curvature.layerwise_sharpness(jax.random.key(0), loss, params, rho=1.0)
      >>> round(float(found["a"]), 2), round(float(found["b"]), 2)
      (3.0, 4.0)

    References:
      Abdollahpoorrostam (2024), "In Search of the Successful Interpolation: On the Role of
      Sharpness in CLIP Generalization", arXiv:2410.16476. :cite:`straggler-layer-sharpness`

      Andriushchenko et al. (2023), arXiv:2302.07011. :cite:`modern-sharpness`
    """
    names = layer_names(params, groups=groups)
    params = jax.tree.map(jnp.asarray, params)
    if scale is None:
        scale = jax.tree.map(jnp.ones_like, params)
    checks.same_structure(scale, params, name="scale", like_name="params")
    leaves, structure = jax.tree.flatten(scale)
    number_of = {name: number for number, name in enumerate(names)}
    layers = [number_of[name] for name in leaf_layers(params, groups)]

    def rise(number: Array) -> Array:
        # Where the scale is zero nothing moves.
        held = [
            jnp.where(number == layer, jnp.asarray(c), jnp.zeros_like(c))
            for layer, c in zip(layers, leaves)
        ]
        found = auto_pgd(
            jax.random.fold_in(key, number),
            fun,
            params,
            rho=rho,
            p=p,
            scale=jax.tree.unflatten(structure, held),
            num_steps=num_steps,
            num_restarts=num_restarts,
        )
        return found.value - found.clean

    return dict(zip(names, jax.lax.map(rise, jnp.arange(len(names)))))


def straggler_layers(scores: Mapping[str, Any], num: int) -> dict[str, Array]:
    """The layers that stand out most (Abdollahpoorrostam 2024; the definition is ours).

    Choose on data of the training distribution: stragglers chosen on shifted data tell nothing
    about the accuracy there.

    Args:
      scores: name of a layer -> how far it stands out: its largest sharpness along the path over
        the median of the layers, or its barrier (`layer_barriers`).
      num: how many layers, from 0 to all.

    Returns:
      Name of a layer -> whether it is one of the ``num`` of largest score; exactly ``num`` are, of
      equal scores the first. NaN counts as smallest.

    Raises:
      ValueError: ``num`` not as above, or scores that are not scalars.

    Example:
      >>> from gradkin import curvature
      >>> chosen = curvature.straggler_layers({"a": 0.1, "b": 2.0, "c": 0.3}, 1)
      >>> [name for name, yes in chosen.items() if yes]
      ['b']

    References:
      Abdollahpoorrostam (2024), "In Search of the Successful Interpolation: On the Role of
      Sharpness in CLIP Generalization", arXiv:2410.16476. :cite:`straggler-layer-sharpness`
    """
    if not checks.is_integer(num, least=0) or num > len(scores):
        raise ValueError(f"Expected num from 0 to {len(scores)}, the layers, got {num!r}.")
    for name, score in scores.items():
        if np.ndim(score) != 0:
            raise ValueError(
                f"Expected one score per layer, got shape {np.shape(score)} for {name!r}."
            )
    if not scores:
        return {}
    values = jnp.stack([jnp.asarray(score, jnp.float32) for score in scores.values()])
    values = jnp.where(jnp.isnan(values), jnp.full_like(values, -np.inf), values)
    ranks = jnp.argsort(jnp.argsort(-values, stable=True), stable=True)
    return dict(zip(scores, ranks < num))


def sparsify_layers(
    params: PyTree,
    fractions: Mapping[str, Any],
    *,
    origin: PyTree | None = None,
    groups: Groups = "layer",
) -> PyTree:
    """Set the smallest numbers of some layers to zero, by magnitude.

    Args:
      params: pytree of arrays.
      fractions: name of a layer (`layer_names`) -> the part of its numbers that go, in [0, 1], all
        leaves of the layer together; layers that it lacks are left alone.
      origin: None prunes the weights; a pytree like ``params``, such as the model before
        fine-tuning, prunes the differences from it: the smallest return to the origin.
      groups: what a layer is, as in `layer_names`.

    Returns:
      A pytree like ``params``. Of ``n`` numbers ``round(fraction n)`` go; of equal ones the first.
      A fraction of 0 changes nothing, 1 leaves zeros (or the origin).

    Raises:
      ValueError: names of no layer, fractions outside [0, 1], trees that differ, unknown groups.

    Example:
      >>> import jax.numpy as jnp
      >>> from gradkin import curvature
      >>> params = {"a": {"w": jnp.array([3.0, -1.0, 2.0, 0.5])}, "b": {"w": jnp.array([0.1])}}
      >>> curvature.sparsify_layers(params, {"a": 0.5})["a"]["w"].tolist()
      [3.0, 0.0, 2.0, 0.0]

    References:
      Abdollahpoorrostam (2024), arXiv:2410.16476. :cite:`straggler-layer-sharpness`

    Note:
      What exactly the paper prunes was not at hand; both readings are here.
    """
    if origin is not None:
        checks.same_structure(origin, params, name="origin", like_name="params")
    check_layers(fractions, layer_names(params, groups=groups), "fractions")
    for name, fraction in fractions.items():
        if checks.is_concrete(fraction) and not 0 <= fraction <= 1:
            raise ValueError(f"Expected fractions in [0, 1], got {fraction} for {name!r}.")
    leaves, structure = jax.tree.flatten(params)
    leaves = [jnp.asarray(leaf) for leaf in leaves]
    base = [jnp.zeros_like(leaf) for leaf in leaves]
    if origin is not None:
        base = [jnp.asarray(o, w.dtype) for o, w in zip(jax.tree.leaves(origin), leaves)]
    layers = leaf_layers(params, groups)
    for name, fraction in fractions.items():
        members = [i for i, layer in enumerate(layers) if layer == name]
        sizes = [
            jnp.abs(leaves[i] - base[i])
            .ravel()
            .astype(np.promote_types(leaves[i].dtype, np.float32))
            for i in members
        ]
        size = jnp.concatenate(sizes)
        ranks = jnp.argsort(jnp.argsort(size, stable=True), stable=True)
        count = jnp.round(jnp.asarray(fraction, jnp.float32) * len(size))
        gone = ranks < count.astype(ranks.dtype)
        ends = np.cumsum([leaves[i].size for i in members])
        for i, end in zip(members, ends):
            drop = gone[end - leaves[i].size : end].reshape(leaves[i].shape)
            leaves[i] = jnp.where(drop, base[i], leaves[i])
    return jax.tree.unflatten(structure, leaves)
