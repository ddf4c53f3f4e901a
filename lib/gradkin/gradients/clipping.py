"""Sums of gradients in which no example counts for more than a bound."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gradkin import checks
from gradkin.pytrees import register_dataclass
from gradkin.typing import Array, PyTree

STYLES = ("rescale", "automatic")
Groups = str | Callable[[str], str]


@functools.partial(
    register_dataclass,
    data_fields=["value", "contribution", "clip_norms", "norms", "kept", "nonfinite"],
    meta_fields=["leaf_groups"],
)
@dataclasses.dataclass(frozen=True)
class ClippedSum:
    """A sum over examples, each of which moves it by at most ``contribution``.

    Attributes:
      value: ``sum_i c(g_i)``, a pytree like the parameters.
      contribution: bound on the L2 norm of one example's share, scalar; the sensitivity when one
        example is added or removed (twice that when one is replaced).
      clip_norms: bound of each group ``[K]``, groups in order of their names; their root sum of
        squares is ``contribution``.
      norms: norms before clipping ``[B, K]``; 0 on padding and on rows that were zeroed.
      kept: which rows were examples with finite gradients ``[B]``.
      nonfinite: number of examples zeroed for NaN or infinity.
      leaf_groups: the group's number of each leaf of ``value``.
    """

    # Not `Array`: transformations put shapes and other placeholders into a pytree.
    value: PyTree
    contribution: Any
    clip_norms: Any
    norms: Any
    kept: Any
    nonfinite: Any
    leaf_groups: tuple[int, ...]

    @property
    def clipped(self) -> Array:
        """Whether each row's part in each group was longer than its bound ``[B, K]``."""
        return self.norms > self.clip_norms[None, :]


def group_names(paths: list[str], groups: Groups) -> list[str]:
    """The group of each parameter path.

    Args:
      paths: ``"layers/0/kernel"`` and the like.
      groups: "flat" (one group), "leaf", "layer" (the path without its last name), or a function
        from a path to a group's name.
    """
    if callable(groups):
        return [str(groups(path)) for path in paths]
    checks.one_of(("flat", "leaf", "layer"), groups=groups)
    if groups == "flat":
        return ["all"] * len(paths)
    return paths if groups == "leaf" else [p.rpartition("/")[0] or p for p in paths]


def clipped_sum(
    G: Any,
    clip_norm: Any,
    *,
    mask: Any = None,
    groups: Groups = "flat",
    style: str = "rescale",
    stability: float = 0.01,
) -> ClippedSum:
    """Sum of clipped per-example gradients, from one backward pass.

    Each group k of parameters is clipped on its own:

    .. math:: \\sum_i g_i^k \\min(1, C_k / \\|g_i^k\\|) \\quad\\text{or}\\quad
        \\sum_i g_i^k\\, C_k / (\\|g_i^k\\| + \\gamma)

    ============================  =============================================================
    case                          result
    ============================  =============================================================
    norm at most the bound        the row as it is, bit for bit ("rescale")
    norm above the bound          rescaled to the bound, up to float32 rounding
    zero gradient                 zero, both styles
    NaN or infinity anywhere      the whole row is zero by select in all groups, and counted:
                                  one such row would make the sum NaN, an unbounded influence
    norm overflows float32        as above
    row masked as padding         zero by select, even if NaN
    no example at all             zero; noise is added all the same
    ``clip_norm`` <= 0 or NaN     ValueError; where traced, all rows are zero and the bound is
                                  NaN, so that the noise, and with it the result, is NaN
    ``clip_norm`` infinite        nothing is clipped and the bound is infinite: it can be summed,
                                  not privatized ("automatic": ValueError)
    bfloat16, float16             norms and the sum in float32 (parameters are to be float32; see
                                  `private_gradient`)
    ============================  =============================================================

    Args:
      G: per-example gradients.
      clip_norm: a number ``C > 0``, split as ``C / sqrt(K)`` over K groups; or numbers ``[K]`` or a
        mapping from group to number.
      mask: which rows are examples ``[B]``, default all.
      groups: "flat", "layer", "leaf", or a function from a parameter's path to a group's name.
      style: "rescale" (Abadi et al. 2016) or "automatic" (Bu et al. 2023, AUTO-S).
      stability: gamma of "automatic", > 0.

    Returns:
      The sum, its bound per example and the norms. The diagnostics are not private.

    Raises:
      ValueError: a bound that is not positive, an unknown style, groups that do not match.

    Example:
      >>> import jax.numpy as jnp
      >>> import gradkin
      >>> from gradkin import gradients
      >>> loss = lambda w, x: w @ x  # the gradient is x
      >>> x = jnp.array([[3.0, 4.0], [0.0, 0.5], [jnp.nan, 0.0]])
      >>> G = gradkin.per_example_grads(loss)(jnp.zeros(2), x)
      >>> total = gradients.clipped_sum(G, 1.0)
      >>> total.value.round(4).tolist(), int(total.nonfinite)
      ([0.5999999642372131, 1.2999999523162842], 1)

    References:
      Abadi et al. (2016), "Deep Learning with Differential Privacy", CCS. :cite:`abadi:16`
      Bu, Wang, Zha & Karypis (2023), "Automatic Clipping: Differentially Private Deep Learning
      Made Easier and Stronger", NeurIPS, arXiv:2206.07136. :cite:`bu:23`

    Note:
      Norms come from products of small Gram matrices in float32; where a gradient is a near
      cancellation of large terms, its norm can come out too small. ``route="dense"`` of
      `gradkin.per_example_grads` forms the rows instead.
    """
    checks.one_of(STYLES, style=style)
    checks.positive(stability=stability)
    paths = [leaf.path for leaf in G.leaves if leaf.selected]
    of_path = dict(zip(paths, group_names(paths, groups), strict=True))
    names = sorted(set(of_path.values()))
    bounds = group_bounds(clip_norm, names)
    if style == "automatic" and checks.is_concrete(bounds) and np.any(np.isinf(bounds)):
        raise ValueError(f"Expected a finite clip_norm for style='automatic', got {clip_norm}.")
    bounds = jnp.asarray(bounds, np.float32)
    bounds = jnp.where(bounds > 0, bounds, jnp.full_like(bounds, np.nan))

    keep = jnp.ones((len(G),), bool) if mask is None else jnp.asarray(mask)
    if keep.dtype != bool or keep.shape != (len(G),):
        raise ValueError(
            f"Expected mask to be boolean of shape ({len(G)},), got {keep.dtype} of {keep.shape}."
        )
    parts = [
        G if len(names) == 1 else G.select(lambda path, name=name: of_path.get(path) == name)
        for name in names
    ]
    norms = jnp.stack([part.norms().astype(np.float32) for part in parts], axis=1)
    finite = jnp.all(jnp.isfinite(norms), axis=1)
    valid = keep & finite & jnp.all(bounds > 0)
    norms = jnp.where(valid[:, None], norms, np.float32(0))
    factors = row_factors(norms, bounds[None, :], style, stability)
    factors = jnp.where(valid[:, None], factors, np.float32(0))
    sums = [factors[:, k] @ part.where(valid) for k, part in enumerate(parts)]
    return ClippedSum(
        value=merge(sums),
        contribution=jnp.sqrt(jnp.sum(jnp.square(bounds))),
        clip_norms=bounds,
        norms=norms,
        kept=keep & finite,
        nonfinite=jnp.sum(keep & ~finite),
        leaf_groups=tuple(names.index(of_path[path]) for path in paths),
    )


def row_factors(norms: Array, bounds: Array, style: str, stability: float) -> Array:
    """What each row is multiplied with; rows within the bound get exactly one."""
    bounds = jnp.broadcast_to(bounds, norms.shape)
    if style == "automatic":
        return bounds / (norms + np.float32(stability))
    above = norms > bounds
    # One unit in the last place less, so that rounding cannot lengthen the row again.
    ratio = bounds / jnp.where(above, norms, jnp.ones_like(norms)) * np.float32(1 - 2.0**-23)
    return jnp.where(above, ratio, jnp.ones_like(norms))


def group_bounds(clip_norm: Any, names: list[str]) -> Any:
    """One bound per group ``[K]``, checked; NumPy unless something is traced."""
    if isinstance(clip_norm, Mapping):
        if sorted(clip_norm) != names:
            raise ValueError(f"Expected clip_norm for the groups {names}, got {sorted(clip_norm)}.")
        clip_norm = [clip_norm[name] for name in names]
        traced = not all(checks.is_concrete(value) for value in clip_norm)
        clip_norm = jnp.stack([jnp.asarray(v) for v in clip_norm]) if traced else clip_norm
    concrete = checks.is_concrete(clip_norm)
    values = np.asarray(clip_norm, np.float32) if concrete else jnp.asarray(clip_norm, np.float32)
    checks.positive(clip_norm=values)
    if values.ndim == 0:
        return (np if concrete else jnp).full((len(names),), 1.0, np.float32) * (
            values / np.float32(np.sqrt(len(names)))
        )
    if values.shape != (len(names),):
        raise ValueError(
            f"Expected clip_norm to be a number or one per group, shape ({len(names)},), got "
            f"shape {values.shape}."
        )
    return values


def merge(trees: list[PyTree]) -> PyTree:
    """One tree from several that are None wherever another has its leaf."""
    return jax.tree.map(
        lambda *leaves: next((leaf for leaf in leaves if leaf is not None), None),
        *trees,
        is_leaf=lambda leaf: leaf is None,
    )
