"""Gaussian noise on a bounded sum: the one place where noise meets a gradient."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gradkin import checks
from gradkin.gradients.accounting import RELATIONS
from gradkin.gradients.clipping import ClippedSum
from gradkin.pytrees import register_dataclass
from gradkin.typing import Array, PRNGKey, PyTree, Scalar

ALLOCATIONS = ("equal", "proportional")


@functools.partial(
    register_dataclass,
    data_fields=[
        "value",
        "sensitivity",
        "noise_std",
        "norms",
        "clipped_fraction",
        "num_examples",
        "nonfinite",
        "next_clip_norm",
    ],
    meta_fields=["reduction", "relation"],
)
@dataclasses.dataclass(frozen=True)
class NoisedGradient:
    """A clipped and noised gradient, with what its noise was scaled to.

    ``value``, ``sensitivity`` and ``noise_std`` share one unit, that of ``reduction``; `mean`
    converts all three, so noise for a sum cannot end up on a mean.

    Attributes:
      value: the released sum or mean, a pytree like the parameters. The only private field,
        together with ``next_clip_norm``.
      sensitivity: L2 sensitivity of the value before noise, under ``relation``.
      noise_std: standard deviation of the noise in each group ``[K]``.
      norms: diagnostics, NOT private: norms before clipping ``[B, K]``.
      clipped_fraction: NOT private: share of examples that were clipped, per group ``[K]``.
      num_examples: NOT private: examples in the batch, padding excluded.
      nonfinite: NOT private: examples zeroed for NaN or infinity.
      next_clip_norm: the bound for the next step under adaptive clipping, else None.
      reduction: "sum" or "mean".
      relation: the neighbouring relation of ``sensitivity``.
    """

    # Not `Array`: transformations put shapes and other placeholders into a pytree.
    value: PyTree
    sensitivity: Any
    noise_std: Any
    norms: Any
    clipped_fraction: Any
    num_examples: Any
    nonfinite: Any
    next_clip_norm: Any
    reduction: str
    relation: str

    def mean(self, expected_size: Scalar) -> "NoisedGradient":
        """Divide value, sensitivity and noise by a constant, the expected number of examples.

        Never by the number that was drawn: that number depends on who took part.
        """
        if self.reduction != "sum":
            raise ValueError("Expected a noised sum, got a mean: it has been divided already.")
        checks.positive(expected_size=expected_size)
        return dataclasses.replace(
            self,
            value=jax.tree.map(lambda g: g / np.asarray(expected_size, g.dtype), self.value),
            sensitivity=self.sensitivity / expected_size,
            noise_std=self.noise_std / expected_size,
            reduction="mean",
        )


def add_noise(
    key: PRNGKey,
    total: ClippedSum,
    *,
    noise_multiplier: Scalar,
    relation: str = "add_or_remove_one",
    allocation: str = "equal",
) -> NoisedGradient:
    """The Gaussian mechanism on a clipped sum.

    With sensitivity ``S = |C|`` (twice that for "replace_one") over groups with bounds ``C_k``:
    "equal" adds ``N(0, (z S)^2)`` to every coordinate; "proportional" adds
    ``N(0, (z sqrt(K) S_k)^2)`` to group k, which is the same mechanism after dividing each group
    by its bound. Both have noise multiplier ``z`` for the joint release.

    Args:
      key: a key used for nothing else.
      total: from `clipped_sum`.
      noise_multiplier: ``z >= 0``; zero adds nothing and is not private.
      relation: "add_or_remove_one", "replace_special" or "replace_one".
      allocation: "equal" or "proportional".

    Returns:
      The noised sum with its sensitivity.

    Raises:
      ValueError: a negative noise multiplier, noise on a sum without bound, unknown options.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import gradkin
      >>> from gradkin import gradients
      >>> G = gradkin.per_example_grads(lambda w, x: w @ x)(jnp.zeros(2), jnp.eye(2))
      >>> total = gradients.clipped_sum(G, 0.5)
      >>> noised = gradients.add_noise(jax.random.key(0), total, noise_multiplier=2.0)
      >>> float(noised.sensitivity), float(noised.noise_std[0])
      (0.5, 1.0)

    Note:
      This noise is a floating-point sample from a counter-based generator: tails end near 5.4
      standard deviations, values lie on a grid that depends on the clipped sum (Mironov 2012), and
      threefry is not a cryptographic generator. The stated privacy is that of real-number noise.
      Do not release intermediate sums to somebody who can measure the least significant bits, and
      draw the first key from the operating system's entropy, not from a written-down seed.

    References:
      Mironov (2012), "On Significance of the Least Significant Bits for Differential Privacy",
      CCS. :cite:`mironov:12`
    """
    checks.non_negative(noise_multiplier=noise_multiplier)
    checks.one_of(RELATIONS, relation=relation)
    checks.one_of(ALLOCATIONS, allocation=allocation)
    known = checks.is_concrete(total.clip_norms) and checks.is_concrete(noise_multiplier)
    if known and noise_multiplier != 0 and np.any(np.isinf(np.asarray(total.clip_norms))):
        raise ValueError(
            "Expected a finite clip_norm with noise, got clip_norm=inf: a sum without bound "
            "has no sensitivity. Set noise_multiplier=0 to train without privacy."
        )
    factor = np.float32(2 if relation == "replace_one" else 1)
    sensitivity = total.contribution * factor
    stds = group_stds(total.clip_norms * factor, noise_multiplier, allocation)
    drawn = jnp.sum(total.kept) + total.nonfinite
    return NoisedGradient(
        value=noised(key, total.value, stds, total.leaf_groups, noise_multiplier),
        sensitivity=sensitivity,
        noise_std=stds,
        norms=total.norms,
        clipped_fraction=jnp.sum(total.clipped, axis=0).astype(np.float32)
        / jnp.maximum(drawn, 1).astype(np.float32)[None],
        num_examples=drawn,
        nonfinite=total.nonfinite,
        next_clip_norm=None,
        reduction="sum",
        relation=relation,
    )


def group_stds(sensitivities: Array, noise_multiplier: Scalar, allocation: str) -> Array:
    """Noise per group ``[K]`` for group sensitivities ``[K]``; exactly zero without noise."""
    z = jnp.asarray(noise_multiplier, np.float32)
    if allocation == "equal":
        scale = jnp.broadcast_to(jnp.sqrt(jnp.sum(jnp.square(sensitivities))), sensitivities.shape)
    else:
        scale = sensitivities * np.float32(np.sqrt(len(sensitivities)))
    # An infinite bound without noise: inf * 0 would be NaN.
    return jnp.where(z == 0, jnp.zeros_like(scale), z * scale)


def noised(key: PRNGKey, tree: PyTree, stds: Array, leaf_groups: tuple[int, ...], z: Any) -> PyTree:
    """Add independent normal noise to every leaf, in the leaf's dtype."""
    if checks.is_concrete(z) and z == 0:
        return tree
    leaves, structure = jax.tree.flatten(tree)
    keys = jax.random.split(key, len(leaves))
    return jax.tree.unflatten(
        structure,
        [
            g + stds[k].astype(g.dtype) * jax.random.normal(leaf_key, g.shape, g.dtype)
            for g, k, leaf_key in zip(leaves, leaf_groups, keys, strict=True)
        ],
    )
