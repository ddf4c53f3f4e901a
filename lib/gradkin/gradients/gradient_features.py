"""Features of examples read off their gradients: projected, as Adam would step, or as signs."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from gradkin import checks
from gradkin.gradients.adam_direction import (
    AdamMoments,
    AdamOptions,
    adam_options,
    check_moments,
    leaf_rule,
)
from gradkin.matrices import contraction, micro_batches, sketching, verbs
from gradkin.matrices.per_example import hashable, per_example_grads
from gradkin.typing import Array, PyTree, Scalar

DIRECTIONS = ("gradient", "adam", "sign")
# A row whose largest entry is smaller counts as zero, as in a gradient store.
LEAST = 1e-30


def gradient_features(
    loss_fn: Callable[..., Any],
    params: PyTree,
    batch: PyTree,
    *,
    sketch: Any = None,
    direction: str = "gradient",
    moments: AdamMoments | None = None,
    normalize: bool = False,
    batch_size: int | None = None,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    bias_correction: bool = True,
    eps_inside_sqrt: bool = False,
) -> Float[Array, "examples dim"]:
    """One short vector per example from its gradient (Xia et al. 2024, sec. 4.1).

    .. math:: f_i = P^T d(\\nabla \\ell(\\theta, z_i))

    with the same random ``P`` for all examples, so that inner products of features estimate those
    of directions. The features of an example do not depend on the batch it is in, on
    ``batch_size``, or on how examples lie over devices.

    Args:
      loss_fn: ``loss_fn(params, example)`` -> scalar.
      params: the parameters whose gradient is taken; what is frozen (the model under an adapter)
        is closed over by ``loss_fn``, which is then made inside a `jax.jit` that takes it as an
        argument: see the example of `less_features`.
      batch: ``n`` examples, batched.
      sketch: a sketch, such as `RademacherSketch`; None for all numbers of the direction, in the
        order of the parameters' leaves.
      direction: "gradient"; "adam", the step of `adam_direction`; or "sign", the gradient's signs.
      moments: Adam's, of the same parameters; needed for "adam", else unused.
      normalize: divide each row by its norm; a row of zeros stays.
      batch_size: examples whose gradients exist at a time; None for all. Where the batch is
        sharded, a multiple of the number of devices.
      b1: see `adam_direction`.
      b2: see `adam_direction`.
      eps: see `adam_direction`.
      bias_correction: see `adam_direction`.
      eps_inside_sqrt: see `adam_direction`.

    Returns:
      ``[n, k]`` (``[n, parameters]`` without a sketch), float32 or wider.

    Raises:
      TypeError: ``sketch`` is no sketch, or ``moments`` are none.
      ValueError: another direction, "adam" without moments, moments that are not like the
        parameters, options outside their range, no examples or examples that differ in number.

    Note:
      An example whose gradient is exactly zero (all its tokens are masked) has features of zeros.
      Under "adam" the formula would give it the direction of the momentum, which says nothing about
      the example. NaN in a gradient is NaN in its features.

    Example:
      >>> import jax.numpy as jnp
      >>> from gradkin import gradients
      >>> loss = lambda w, x: w @ x  # the gradient is x
      >>> x = jnp.array([[3.0, -4.0], [0.0, 0.0]])
      >>> gradients.gradient_features(loss, jnp.ones(2), x, direction="sign").tolist()
      [[1.0, -1.0], [0.0, 0.0]]

    References:
      Xia et al. (2024), "LESS: Selecting Influential Data for Targeted Instruction Tuning",
      arXiv:2402.04333, sec. 4.1. :cite:`less-data-selection`
    """
    return features(
        loss_fn,
        params,
        batch,
        sketch=sketch,
        direction=direction,
        moments=moments,
        normalize=normalize,
        batch_size=batch_size,
        options=adam_options(b1, b2, eps, bias_correction, eps_inside_sqrt),
    )


def features(
    loss_fn: Callable[..., Any],
    params: PyTree,
    batch: PyTree,
    *,
    sketch: Any,
    direction: str,
    moments: AdamMoments | None,
    normalize: bool,
    batch_size: int | None,
    options: AdamOptions,
    stacked: bool = False,
) -> Array:
    """As `gradient_features`; ``stacked`` parameters and moments have a leading axis, too."""
    checks.one_of(DIRECTIONS, direction=direction)
    if sketch is not None:
        sketching.check_sketch(sketch)
    if batch_size is not None:
        checks.positive_integer(batch_size=batch_size)
    if direction == "adam":
        if moments is None:
            raise ValueError("Expected moments with direction='adam', got None.")
        check_moments(moments)
        for name in ("mu", "nu"):
            tree = getattr(moments, name)
            checks.same_structure(tree, params, name=f"moments.{name}", like_name="params")
    num_examples(batch)
    known = all(isinstance(x, (bool, float)) for x in options)
    return (_compiled if known else _features)(
        hashable(loss_fn),
        params,
        batch,
        sketch,
        moments if direction == "adam" else None,
        direction=direction,
        normalize=bool(normalize),
        batch_size=batch_size,
        options=options,
        stacked=stacked,
    )


def unit_rows(x: Array) -> Array:
    """Rows along the last axis divided by their norms, float32 or wider; zeros stay zeros.

    Without overflow or underflow of squares. A row with NaN or infinity becomes NaN.
    """
    x = x.astype(contraction.at_least_float32(x.dtype))
    largest = jnp.max(jnp.abs(x), axis=-1, keepdims=True, initial=0)
    zero = largest < LEAST
    x = jnp.where(zero, 0, x) / jnp.where(zero, 1, largest)
    return x * verbs.inverse(verbs.safe_sqrt(jnp.sum(jnp.square(x), axis=-1, keepdims=True)))


def num_examples(batch: PyTree, name: str = "batch") -> int:
    """How many examples a batch has.

    Raises:
      ValueError: no leaves, no examples, or leaves that differ.
    """
    counts = {np.shape(x)[:1] for x in jax.tree.leaves(batch)}
    if len(counts) != 1 or () in counts or (0,) in counts:
        raise ValueError(
            f"Expected {name} with one leading axis of at least one example at every leaf, got "
            f"leading axes {sorted(counts)}."
        )
    ((count,),) = counts
    return count


def _features(
    loss_fn: Callable[..., Any],
    params: PyTree,
    batch: PyTree,
    sketch: Any,
    moments: AdamMoments | None,
    *,
    direction: str,
    normalize: bool,
    batch_size: int | None,
    options: AdamOptions,
    stacked: bool,
) -> Array:
    if stacked:
        fixed = {"direction": direction, "normalize": normalize, "batch_size": batch_size}
        return jax.lax.map(
            lambda x: _features(
                loss_fn, x[0], batch, sketch, x[1], options=options, stacked=False, **fixed
            ),
            (params, moments),
        )

    def of(part: PyTree) -> Array:
        G = per_example_grads(loss_fn)(params, part)
        if direction == "gradient":
            rows = _projected(G, sketch)
        elif direction == "sign":
            rows = _projected(G.map(jnp.sign), sketch)
        else:
            assert moments is not None
            rule = leaf_rule(moments.count, options)
            rows = _projected(G.map(rule, moments.mu, moments.nu), sketch)
            rows = jnp.where(_any_gradient(G)[:, None], rows, 0)
        return unit_rows(rows) if normalize else rows

    if batch_size is None:
        return of(batch)
    count = num_examples(batch)
    return micro_batches.scan(
        lambda rows, _: of(jax.tree.map(lambda x: rows(jnp.asarray(x)), batch)),
        num_examples=count,
        batch_size=min(batch_size, count),
        stack=True,
    )


_compiled = functools.partial(
    jax.jit,
    static_argnames=("loss_fn", "direction", "normalize", "batch_size", "options", "stacked"),
    inline=True,
)(_features)


def _projected(G: Any, sketch: Any) -> Array:
    if sketch is not None:
        return G.sketch(sketch)
    rows = [_flat(x) for x in jax.tree.leaves(G.materialize())]
    dtype = functools.reduce(np.promote_types, [x.dtype for x in rows], np.dtype(np.float32))
    return jnp.concatenate([x.astype(dtype) for x in rows], axis=1)


def _any_gradient(G: Any) -> Array:
    """Whether any number of a row is not zero; the rows are those that `map` multiplies out."""
    return functools.reduce(
        jnp.logical_or, [jnp.any(_flat(x) != 0, axis=1) for x in jax.tree.leaves(G.materialize())]
    )


def _flat(x: Array) -> Array:
    return x.reshape((x.shape[0], math.prod(x.shape[1:])))
