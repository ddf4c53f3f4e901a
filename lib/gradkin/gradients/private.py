"""The private gradient: clipped per example, noised, and able to say what it costs."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gradkin import checks
from gradkin.gradients import clipping, noise
from gradkin.gradients.accounting import GaussianMechanism
from gradkin.gradients.adaptive_clipping import QuantileClipping
from gradkin.gradients.clipping import ClippedSum, Groups
from gradkin.gradients.noise import NoisedGradient
from gradkin.gradients.sampling import Sampling
from gradkin.gradients.verification import verify_rows
from gradkin.matrices.arguments import path_name
from gradkin.matrices.per_example import per_example_grads
from gradkin.typing import PRNGKey, PyTree

BATCH_STATISTICS = ("batch_stats", "BatchStat", "batch_stat")


@dataclasses.dataclass(frozen=True, eq=False)
class PrivateGradient:
    """What `private_gradient` returns: call it for a gradient, ask ``mechanism`` for the cost.

    Attributes:
      loss_fn: loss of one example.
      clip_norm: bound per example (or user).
      mechanism: noise, sampling and neighbouring relation, for `epsilon` and its like.
      options: the other options of `private_gradient`.
    """

    loss_fn: Callable[..., Any]
    clip_norm: Any
    mechanism: GaussianMechanism
    options: "Options"

    def __call__(
        self, key: PRNGKey, params: PyTree, *batch: Any, mask: Any = None, clip_norm: Any = None
    ) -> NoisedGradient:
        """The noised gradient of one batch.

        Args:
          key: a key used for nothing else.
          params: the parameters.
          *batch: further arguments of the loss, with a leading axis of examples (or users).
          mask: which rows are examples ``[B]``, False on padding; for users also ``[U, E]``.
          clip_norm: overrides the bound, such as ``next_clip_norm`` of the step before.
        """
        clip_norm = self.clip_norm if clip_norm is None else clip_norm
        return _run(self, key, params, batch, mask, clip_norm)


@dataclasses.dataclass(frozen=True)
class Options:
    """How the sum is formed; see `private_gradient`."""

    groups: Groups
    style: str
    stability: float
    reduction: str
    unit: str
    microbatch_size: int | None
    allocation: str
    quantile: QuantileClipping | None
    in_axes: Any
    route: str
    check: bool


def private_gradient(
    loss_fn: Callable[..., Any],
    *,
    clip_norm: Any,
    noise_multiplier: float,
    sampling: Sampling,
    relation: str = "add_or_remove_one",
    reduction: str = "mean",
    groups: Groups = "flat",
    style: str = "rescale",
    stability: float = 0.01,
    allocation: str = "equal",
    quantile: QuantileClipping | None = None,
    unit: str = "example",
    microbatch_size: int | None = None,
    in_axes: Any = 0,
    route: str = "auto",
    check: bool = True,
) -> PrivateGradient:
    """Transform the loss of one example into a differentially private gradient (DP-SGD).

    .. math:: \\frac{1}{m} \\Big( \\sum_{i \\in \\text{batch}} c(g_i) + N(0, z^2 S^2 I) \\Big)

    with one backward pass and no gradient of an example formed where factors are cheaper.

    Args:
      loss_fn: ``loss_fn(params, example, ...)`` -> scalar, of one example.
      clip_norm: ``C > 0``: a number, or one per group (see `clipped_sum`).
      noise_multiplier: ``z >= 0``, noise over sensitivity; `noise_multiplier` finds it.
      sampling: how the batches that this will be given are drawn.
      relation: "add_or_remove_one", "replace_special" or "replace_one" (sensitivity 2 C).
      reduction: "mean" (over the *expected* batch size) or "sum".
      groups: "flat", "layer", "leaf" or a function from path to group: what is clipped together.
      style: "rescale" or "automatic".
      stability: gamma of "automatic".
      allocation: "equal" or "proportional" noise across groups (see `add_noise`).
      quantile: adapts ``clip_norm``; feed ``next_clip_norm`` to the next call. Flat clipping only.
      unit: what one row protects: an "example", or a "user", whose rows ``[U, E, ...]`` are
        averaged before clipping.
      microbatch_size: rows recorded at a time, divides the batch; None takes all at once.
      in_axes: 0, or a tuple with 0 or None for each argument after the parameters: None is shared
        by all examples, such as frozen parameters.
      route: see `gradkin.per_example_grads`.
      check: compare norms and sums with plain `jax.grad` on two made-up examples, once per
        compiled shape, and raise where they differ.

    Returns:
      A `PrivateGradient`: ``f(key, params, *batch, mask=None)`` -> `NoisedGradient`.

    Raises:
      ValueError: a non-positive bound, negative noise, unknown options, batch statistics among the
        parameters, a loss that couples examples, a batch without leading axis or of another size
        than ``sampling`` draws; and see `clipped_sum`, `add_noise`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from gradkin import gradients
      >>> loss = lambda w, x: 0.5 * jnp.sum((w - x) ** 2)
      >>> sampling = gradients.PoissonSampling(100, 0.1, padded_size=32)
      >>> private = gradients.private_gradient(
      ...     loss, clip_norm=1.0, noise_multiplier=1.0, sampling=sampling)
      >>> rows, mask = sampling.sample(jax.random.key(0))
      >>> x = jnp.ones((100, 2))
      >>> noised = private(jax.random.key(1), jnp.zeros(2), x[rows], mask=mask)
      >>> noised.reduction, round(float(noised.sensitivity), 6)
      ('mean', 0.1)
      >>> round(gradients.epsilon(private.mechanism, steps=10, delta=1e-5, accountant="rdp"), 1)
      3.6

    Note:
      A row that is NaN or infinite is zeroed by select (`clipped_sum` lists all cases).
      Parameters below 32 bits are differentiated as float32 copies, so that the sum is not rounded
      before it is noised; results are float32. What depends on several examples (batch statistics)
      has no sensitivity and is refused where it can be seen; do not put it into the loss.

    References:
      Abadi et al. (2016), "Deep Learning with Differential Privacy", CCS, arXiv:1607.00133.
      :cite:`abadi:16`
    """
    checks.one_of(("sum", "mean"), reduction=reduction)
    checks.one_of(("example", "user"), unit=unit)
    checks.one_of(clipping.STYLES, style=style)
    checks.one_of(noise.ALLOCATIONS, allocation=allocation)
    checks.positive(stability=stability)
    if not callable(groups):
        checks.one_of(("flat", "layer", "leaf"), groups=groups)
    if not isinstance(clip_norm, dict):
        checks.positive(clip_norm=clip_norm)
        if noise_multiplier != 0 and np.any(np.isinf(np.asarray(clip_norm))):
            raise ValueError("Expected a finite clip_norm with noise, got clip_norm=inf.")
    if microbatch_size is not None and microbatch_size < 1:
        raise ValueError(
            f"Expected microbatch_size to be a positive integer, got {microbatch_size}."
        )
    mechanism = GaussianMechanism(noise_multiplier, sampling, relation)
    if quantile is not None:
        if groups != "flat":
            raise ValueError(f"Expected groups='flat' with quantile, got groups={groups!r}.")
        quantile.gradient_noise(noise_multiplier)
    options = Options(
        groups,
        style,
        stability,
        reduction,
        unit,
        microbatch_size,
        allocation,
        quantile,
        in_axes,
        route,
        check,
    )
    return PrivateGradient(loss_fn, clip_norm, mechanism, options)


@functools.partial(jax.jit, static_argnums=0, inline=True)
def _run(
    private: PrivateGradient, key: Any, params: Any, batch: Any, mask: Any, clip_norm: Any
) -> NoisedGradient:
    options, mechanism = private.options, private.mechanism
    refuse_batch_statistics(params)
    axes = _axes(options.in_axes, batch)
    size = _batch_size(axes, batch)
    if size != mechanism.sampling.size:
        raise ValueError(
            f"Expected a batch of {mechanism.sampling.size} rows, as drawn by sampling (padding "
            f"included), got {size}."
        )
    loss_fn, batch, axes, mask = _of_unit(private, batch, axes, mask, size)
    loss_fn, params = _wide(loss_fn, params)
    _refuse_coupling(loss_fn, params, batch, axes)
    if options.check:
        verify_rows(loss_fn, params, batch, axes, options.route)

    def of_rows(batch: Any, mask: Any) -> ClippedSum:
        G = per_example_grads(loss_fn, in_axes=(None, *axes), route=options.route)(params, *batch)
        return clipping.clipped_sum(
            G,
            clip_norm,
            mask=mask,
            groups=options.groups,
            style=options.style,
            stability=options.stability,
        )

    total = _over_microbatches(of_rows, batch, axes, mask, size, options.microbatch_size)
    multiplier, gradient_key, next_clip_norm = mechanism.noise_multiplier, key, None
    expected = mechanism.sampling.expected_size
    if options.quantile is not None:
        gradient_key, count_key = jax.random.split(key)
        multiplier = options.quantile.gradient_noise(multiplier)
        next_clip_norm = options.quantile.next_clip_norm(
            count_key, total, expected, mechanism.relation
        )
    noised = noise.add_noise(
        gradient_key,
        total,
        noise_multiplier=multiplier,
        relation=mechanism.relation,
        allocation=options.allocation,
    )
    noised = dataclasses.replace(noised, next_clip_norm=next_clip_norm)
    return noised.mean(expected) if options.reduction == "mean" else noised


def refuse_batch_statistics(params: PyTree) -> None:
    """Raise ValueError where a parameter is a statistic of the batch."""
    flat = jax.tree_util.tree_flatten_with_path(
        params, is_leaf=lambda x: type(x).__name__ in BATCH_STATISTICS
    )[0]
    for path, leaf in flat:
        kind = getattr(getattr(leaf, "type", type(leaf)), "__name__", "")
        names = path_name(path).split("/")
        if kind in BATCH_STATISTICS or any(name in BATCH_STATISTICS for name in names):
            raise ValueError(
                f"Expected trainable parameters, got batch statistics at {path_name(path)!r}: they "
                "mix the examples of a batch, so no example's influence is bounded. Use "
                "GroupNorm or LayerNorm, or frozen statistics as an argument with in_axes None."
            )


def _refuse_coupling(loss_fn: Callable[..., Any], params: Any, batch: Any, axes: Any) -> None:
    def row(axis: int | None, arg: Any) -> Any:
        def one(x: Any) -> jax.ShapeDtypeStruct:
            shape = np.shape(x) if axis is None else np.shape(x)[1:]
            return jax.ShapeDtypeStruct(shape, jnp.asarray(x).dtype)

        return jax.tree.map(one, arg)

    try:
        jax.eval_shape(loss_fn, params, *(row(a, x) for a, x in zip(axes, batch, strict=True)))
    except NameError as error:
        if "axis name" not in str(error):
            raise
        raise ValueError(
            "Expected loss_fn to see one example, but it reduces over a named axis, as "
            f"normalization across the batch does ({error}): its examples have no bounded "
            "influence. Use GroupNorm or LayerNorm."
        ) from error


def _axes(in_axes: Any, batch: tuple[Any, ...]) -> tuple[int | None, ...]:
    axes = (0,) * len(batch) if in_axes == 0 else tuple(in_axes)
    if len(axes) != len(batch) or any(axis not in (0, None) for axis in axes):
        raise ValueError(
            "Expected in_axes to be 0, or one of (0, None) for each of the "
            f"{len(batch)} arguments after the parameters, got {in_axes}."
        )
    return axes


def _batch_size(axes: tuple[int | None, ...], batch: tuple[Any, ...]) -> int:
    shapes = [
        np.shape(x)
        for axis, arg in zip(axes, batch, strict=True)
        if axis == 0
        for x in jax.tree.leaves(arg)
    ]
    sizes = {shape[0] if shape else -1 for shape in shapes}
    if len(sizes) != 1 or -1 in sizes:
        raise ValueError(
            f"Expected a batch with one leading axis of examples, got shapes {shapes}."
        )
    return sizes.pop()


def _of_unit(
    private: PrivateGradient, batch: Any, axes: Any, mask: Any, size: int
) -> tuple[Callable[..., Any], Any, Any, Any]:
    """Loss, arguments, axes and row mask of what one row protects."""
    if mask is not None:
        mask = jnp.asarray(mask)
        ranks = (1, 2) if private.options.unit == "user" else (1,)
        if mask.dtype != bool or mask.ndim not in ranks or mask.shape[0] != size:
            raise ValueError(
                f"Expected mask to be boolean with {size} rows, got {mask.dtype} of shape "
                f"{mask.shape}."
            )
    if private.options.unit == "example":
        return private.loss_fn, batch, axes, mask
    inner = tuple(axes)
    first = next(x for a, arg in zip(axes, batch) if a == 0 for x in jax.tree.leaves(arg))
    if np.ndim(first) < 2:
        raise ValueError(
            "Expected a batch of users with axes [users, examples, ...], got shape "
            f"{np.shape(first)}."
        )
    per_user = np.shape(first)[1]
    present = jnp.ones((size, per_user), bool) if mask is None or mask.ndim == 1 else mask
    users = jnp.any(present, axis=1) if mask is None or mask.ndim == 2 else mask

    def loss_of_user(params: Any, *rest: Any) -> Any:
        *examples, real = rest
        losses = jax.vmap(private.loss_fn, in_axes=(None, *inner))(params, *examples)
        weights = real.astype(losses.dtype)
        return jnp.sum(losses * weights) / jnp.maximum(jnp.sum(weights), 1)

    return loss_of_user, (*batch, present), (*axes, 0), users


def _wide(loss_fn: Callable[..., Any], params: PyTree) -> tuple[Callable[..., Any], PyTree]:
    """Loss and parameters in at least float32: a sum in bfloat16 would be rounded before noise."""
    dtypes = jax.tree.map(lambda p: jnp.asarray(p).dtype, params)
    if all(d.itemsize >= 4 for d in jax.tree.leaves(dtypes)):
        return loss_fn, params

    def narrowed(wide: Any, *args: Any) -> Any:
        return loss_fn(jax.tree.map(lambda p, d: p.astype(d), wide, dtypes), *args)

    return narrowed, jax.tree.map(lambda p: p.astype(np.promote_types(p.dtype, np.float32)), params)


def _over_microbatches(
    of_rows: Callable[[Any, Any], ClippedSum],
    batch: Any,
    axes: Any,
    mask: Any,
    size: int,
    microbatch_size: int | None,
) -> ClippedSum:
    """Add the clipped sums of strided slices: a sharded example axis stays sharded."""
    if microbatch_size is None or microbatch_size >= size:
        return of_rows(batch, mask)
    if size % microbatch_size:
        raise ValueError(
            f"Expected microbatch_size to divide the batch, got microbatch_size={microbatch_size} "
            f"and B={size}."
        )
    count = size // microbatch_size
    mask = jnp.ones((size,), bool) if mask is None else mask

    def rows(k: Any, x: Any) -> Any:
        x = jnp.asarray(x).reshape((microbatch_size, count, *np.shape(x)[1:]))
        return jax.lax.dynamic_index_in_dim(x, k, axis=1, keepdims=False)

    def part(k: Any) -> ClippedSum:
        picked = tuple(
            arg if axis is None else jax.tree.map(functools.partial(rows, k), arg)
            for axis, arg in zip(axes, batch, strict=True)
        )
        return of_rows(picked, rows(k, mask))

    shape = jax.eval_shape(part, 0)
    start = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), (shape.value, shape.nonfinite))

    def body(carry: Any, k: Any) -> tuple[Any, Any]:
        one = part(k)
        added = jax.tree.map(jnp.add, carry, (one.value, one.nonfinite))
        return added, (one.norms, one.kept, one.contribution, one.clip_norms)

    (value, nonfinite), (norms, kept, contribution, clip_norms) = jax.lax.scan(
        body, start, jnp.arange(count)
    )
    return dataclasses.replace(
        shape,
        value=value,
        contribution=contribution[0],
        clip_norms=clip_norms[0],
        norms=jnp.swapaxes(norms, 0, 1).reshape((size, -1)),
        kept=jnp.swapaxes(kept, 0, 1).reshape((size,)),
        nonfinite=nonfinite,
    )
