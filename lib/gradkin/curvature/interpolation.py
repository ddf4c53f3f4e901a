"""Interpolation between two models, whole or by layer, and the barriers on the way."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from gradkin import checks
from gradkin.matrices.arguments import path_name
from gradkin.matrices.floating import floating
from gradkin.typing import Array, ArrayLike, PyTree

Groups = str | Callable[[str], str]


def layer_names(params: PyTree, *, groups: Groups = "layer") -> tuple[str, ...]:
    """Names of the layers of a pytree of parameters, in the order of their first leaves.

    Args:
      params: pytree of arrays.
      groups: "layer" (leaves whose paths differ in the last name only are one layer), "leaf", or a
        function from a path ("layers/0/kernel") to a name.

    Returns:
      The names, each once.

    Raises:
      ValueError: unknown groups.

    Example:
      >>> from gradkin import curvature
      >>> curvature.layer_names({"dense0": {"w": 1.0, "b": 0.0}, "dense1": {"w": 2.0, "b": 0.0}})
      ('dense0', 'dense1')
    """
    if not callable(groups):
        checks.one_of(("layer", "leaf"), groups=groups)
    return tuple(dict.fromkeys(leaf_layers(params, groups)))


def leaf_layers(params: PyTree, groups: Groups) -> list[str]:
    """The layer of each leaf."""
    paths = [path_name(path) for path, _ in jax.tree_util.tree_flatten_with_path(params)[0]]
    if callable(groups):
        return [str(groups(path)) for path in paths]
    return paths if groups == "leaf" else [p.rpartition("/")[0] or p for p in paths]


def interpolate(start: PyTree, end: PyTree, alpha: Any, *, groups: Groups = "layer") -> PyTree:
    """``(1 - a) start + a end``: the weight-space ensemble of WiSE-FT (Wortsman et al. 2022).

    Args:
      start: pytree of arrays, such as the zero-shot model.
      end: pytree like ``start``, such as the fine-tuned model.
      alpha: ``a``, one number for all layers, or a dictionary from layers' names (`layer_names`) to
        numbers; layers that it lacks stay at ``start``.
      groups: what a layer is, as in `layer_names`.

    Returns:
      A pytree like ``start``: exactly ``start`` at 0 and ``end`` at 1 where both are finite. Beyond
      [0, 1] it extrapolates.

    Raises:
      ValueError: trees that differ, unknown groups, or names of no layer.

    Example:
      >>> import jax.numpy as jnp
      >>> from gradkin import curvature
      >>> start = {"a": {"w": jnp.zeros(2)}, "b": {"w": jnp.zeros(1)}}
      >>> end = {"a": {"w": jnp.array([1.0, 2.0])}, "b": {"w": jnp.ones(1)}}
      >>> moved = curvature.interpolate(start, end, {"a": 0.5})
      >>> moved["a"]["w"].tolist(), moved["b"]["w"].tolist()
      ([0.5, 1.0], [0.0])

    References:
      Wortsman et al. (2022), "Robust fine-tuning of zero-shot models", arXiv:2109.01903.
      :cite:`wortsman:22`

      Abdollahpoorrostam (2024), "In Search of the Successful Interpolation: On the Role of
      Sharpness in CLIP Generalization", arXiv:2410.16476. :cite:`straggler-layer-sharpness`

    Note:
      Statistics of normalization layers are no weights: compute them anew after interpolating.
    """
    checks.same_structure(end, start, name="end", like_name="start")
    names = layer_names(start, groups=groups)
    if isinstance(alpha, Mapping):
        check_layers(alpha, names, "alpha")
        each = [alpha.get(name, 0.0) for name in leaf_layers(start, groups)]
    else:
        each = [alpha] * len(jax.tree.leaves(start))

    def mix(w: Any, v: Any, a: Any) -> Array:
        w = floating(w)
        a = jnp.asarray(a, w.dtype)
        return (1 - a) * w + a * jnp.asarray(v, w.dtype)

    leaves = [mix(*pair) for pair in zip(jax.tree.leaves(start), jax.tree.leaves(end), each)]
    return jax.tree.unflatten(jax.tree.structure(start), leaves)


def layer_barriers(
    fun: Callable[[PyTree], Array],
    start: PyTree,
    end: PyTree,
    *,
    alphas: Float[ArrayLike, " points"],
    base: str = "start",
    groups: Groups = "layer",
    batch_size: int | None = None,
) -> dict[str, Array]:
    """How far the loss rises above its chord while a single layer is interpolated.

    .. math:: b_l = \\max_a\\, [L(w_a^l) - (1 - a) L(w_0^l) - a L(w_1^l)]

    where in ``w_a^l`` layer ``l`` is interpolated and all others stay at the base.

    Args:
      fun: ``fun(params)`` -> scalar loss.
      start: pytree of arrays.
      end: pytree like ``start``.
      alphas: points ``a`` in [0, 1]; the ends are looked at in any case.
      base: where the other layers are: "start" or "end".
      groups: what a layer is, as in `layer_names`.
      batch_size: models evaluated at once; None: as many as there are points.

    Returns:
      Name of a layer -> its barrier, >= 0: zero where the loss is convex along the layer.

    Raises:
      ValueError: trees that differ, no axis of alphas, alphas outside [0, 1], an unknown base or
        unknown groups, or a loss that is not a scalar.

    Example:
      >>> import jax.numpy as jnp
      >>> from gradkin import curvature
      >>> loss = lambda w: jnp.sin(jnp.pi * w["a"]) + w["b"] ** 2
      >>> ends = ({"a": 0.0, "b": 0.0}, {"a": 1.0, "b": 1.0})
      >>> curvature.layer_barriers(loss, *ends, alphas=jnp.array([0.25, 0.5]), groups="leaf")
      {'a': Array(1., dtype=float32), 'b': Array(0., dtype=float32)}

    References:
      Abdollahpoorrostam (2024), arXiv:2410.16476. :cite:`straggler-layer-sharpness`
    """
    checks.same_structure(end, start, name="end", like_name="start")
    checks.rank(1, alphas=alphas)
    checks.one_of(("start", "end"), base=base)
    if checks.is_concrete(alphas) and not np.all(
        (np.asarray(alphas) >= 0) & (np.asarray(alphas) <= 1)
    ):
        raise ValueError(f"Expected alphas in [0, 1], got {np.asarray(alphas)}.")
    names = layer_names(start, groups=groups)
    alphas = jnp.asarray(alphas)
    steps = jnp.concatenate([jnp.array([0, 1], alphas.dtype), alphas])

    def at(point: tuple[Array, Array]) -> Array:
        number, a = point
        moving = [number == i for i in range(len(names))]
        rest = 0.0 if base == "start" else 1.0
        amounts = {name: jnp.where(yes, a, rest) for name, yes in zip(names, moving)}
        value = fun(interpolate(start, end, amounts, groups=groups))
        if jnp.shape(value) != ():
            raise ValueError(f"Expected fun to return a scalar, got shape {jnp.shape(value)}.")
        return jnp.asarray(value)

    numbers = jnp.repeat(jnp.arange(len(names)), len(steps))
    points = numbers, jnp.tile(steps, len(names))
    losses = jax.lax.map(at, points, batch_size=len(steps) if batch_size is None else batch_size)
    losses = losses.reshape(len(names), len(steps))
    first, last = losses[:, :1], losses[:, 1:2]
    a = steps[None, 2:].astype(losses.dtype)
    above = losses[:, 2:] - ((1 - a) * first + a * last)
    heights = jnp.max(above, axis=1, initial=0)
    return dict(zip(names, heights))


def check_layers(given: Any, names: tuple[str, ...], argument: str) -> None:
    """Raise ValueError where a name is that of no layer."""
    for name in given:
        if name not in names:
            raise ValueError(f"Expected {argument} to name layers of {names}, got {name!r}.")
