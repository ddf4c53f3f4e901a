"""Project one gradient off another."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gradkin.checks import one_of, same_structure
from gradkin.typing import PyTree, Scalar

SCOPES = ("global", "leaf", "group")


class OrthogonalGradient(NamedTuple):
    """A forward gradient, the backward one projected off it, and how they stood.

    Under scope ``"global"`` the last four are scalars, under ``"leaf"`` dicts from path to scalar,
    under ``"group"`` dicts from label to scalar.

    Attributes:
      gradient: forward + eta * (backward - coefficient * forward), a pytree.
      coefficient: <forward, backward> / |forward|^2; 0 where no projection was made.
      cosine: the cosine of the two before projection; 0 if either is 0.
      forward_norm: |forward|.
      backward_norm: |backward|.
    """

    gradient: PyTree
    coefficient: Any
    cosine: Any
    forward_norm: Any
    backward_norm: Any


def path_string(path: tuple[Any, ...]) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def orthogonal_gradient(
    forward: PyTree,
    backward: PyTree,
    eta: Scalar,
    *,
    scope: str = "global",
    group: Callable[[str], str] | None = None,
    only_conflicts: bool = False,
    eps: Scalar = 1e-10,
) -> OrthogonalGradient:
    """Add to one gradient the part of another that does not interfere with it.

    .. math:: g = g_f + \\eta \\Big(g_b - \\frac{<g_f, g_b>}{\\max(|g_f|^2, eps)} g_f\\Big)

    (Mao et al. 2024, eq. 8). To first order a step along the added part leaves the forward loss
    unchanged.

    Args:
      forward: g_f, a pytree of floating arrays.
      backward: g_b, a pytree like ``forward``.
      eta: weight of the backward part; 0 gives ``forward``.
      scope: over what the inner products run: ``"global"`` the whole tree (the paper's), ``"leaf"``
        each leaf, ``"group"`` the leaves that ``group`` gives one label.
      group: label of a leaf from its path ("0/kernel"), for scope ``"group"``.
      only_conflicts: project only where the inner product is negative.
      eps: guards the division where the forward gradient is zero.

    Returns:
      An `OrthogonalGradient`.

    Raises:
      ValueError: on an unknown scope, differing trees, or a ``group`` that is missing or unused.

    Note:
      Everything is linear in ``backward``, so scaling it by eta before the projection, as the
      reference code does, is the same. ``only_conflicts`` is an option of ours.

    Example:
      >>> import jax.numpy as jnp
      >>> out = orthogonal_gradient(jnp.array([2., 0.]), jnp.array([-1., 3.]), 1.)
      >>> out.gradient.tolist(), float(out.coefficient)
      ([2.0, 3.0], -0.5)

    References:
        Mao et al. (2024), "ODICE: Revealing the Mystery of Distribution Correction Estimation via
        Orthogonal-gradient Update", arXiv:2402.00348. :cite:`odice`
    """
    one_of(SCOPES, scope=scope)
    if (scope == "group") != (group is not None):
        raise ValueError(f"Expected group exactly with scope='group', got scope={scope!r}.")
    same_structure(backward, forward, name="backward", like_name="forward")
    paths, treedef = jax.tree_util.tree_flatten_with_path(forward)
    if not paths:
        raise ValueError("Expected at least one leaf in forward, got none.")
    names = [path_string(path) for path, _ in paths]
    labels = ["" if scope == "global" else group(name) if group else name for name in names]
    pairs = list(zip(labels, (leaf for _, leaf in paths), jax.tree.leaves(backward)))

    def inner(choose: Callable[[Any, Any], tuple[Any, Any]]) -> dict[str, Any]:
        sums: dict[str, Any] = {}
        for label, f, b in pairs:
            left, right = choose(jnp.asarray(f).reshape(-1), jnp.asarray(b).reshape(-1))
            wide = jnp.float32 if jnp.finfo(left.dtype).bits < 32 else left.dtype
            term = jnp.dot(left, right, precision="highest", preferred_element_type=wide)
            sums[label] = sums[label] + term if label in sums else term
        return sums

    ff, bb = inner(lambda f, b: (f, f)), inner(lambda f, b: (b, b))
    fb = inner(lambda f, b: (f, b))
    norms_f, norms_b = jax.tree.map(jnp.sqrt, (ff, bb))
    coefficient = {
        label: jnp.where(
            jnp.logical_or(fb[label] < 0, not only_conflicts),
            fb[label] / jnp.maximum(ff[label], eps),
            0.0,
        )
        for label in fb
    }
    product = {label: norms_f[label] * norms_b[label] for label in fb}
    cosine = {
        label: jnp.where(p > 0, fb[label] / jnp.where(p > 0, p, 1.0), 0.0)
        for label, p in product.items()
    }
    combined = [f + eta * (b - coefficient[label].astype(f.dtype) * f) for label, f, b in pairs]
    stats = (coefficient, cosine, norms_f, norms_b)
    if scope == "global":
        stats = tuple(stat[""] for stat in stats)
    return OrthogonalGradient(jax.tree.unflatten(treedef, combined), *stats)


def orthogonalize(
    eta: Scalar,
    *,
    scope: str = "global",
    group: Callable[[str], str] | None = None,
    only_conflicts: bool = False,
    eps: Scalar = 1e-10,
) -> optax.GradientTransformationExtraArgs:
    """`orthogonal_gradient` as an optax transformation.

    Chain it before an optimizer and pass the other gradient by name:
    ``optimizer.update(forward, state, params, backward=backward)``.

    Args:
      eta: as in `orthogonal_gradient`, as are the others.
      scope: see there.
      group: see there.
      only_conflicts: see there.
      eps: see there.

    Returns:
      A stateless transformation whose update needs the extra argument ``backward``.

    Raises:
      ValueError: as `orthogonal_gradient`.
      TypeError: if the update is not given ``backward``.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> tx = optax.chain(orthogonalize(1.), optax.scale(-1.))
      >>> f, b = jnp.array([2., 0.]), jnp.array([-1., 3.])
      >>> tx.update(f, tx.init(f), backward=b)[0].tolist()
      [-2.0, -3.0]
    """
    one_of(SCOPES, scope=scope)

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        del params
        if "backward" not in extra:
            raise TypeError("Expected backward= in optimizer.update, got none.")
        out = orthogonal_gradient(
            updates,
            extra["backward"],
            eta,
            scope=scope,
            group=group,
            only_conflicts=only_conflicts,
            eps=eps,
        )
        return out.gradient, state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)
