"""A short training whose checkpoints data are selected by."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Float, Int

from gradkin import checks, optim
from gradkin.gradients.adam_direction import AdamMoments, adam_moments, adam_states
from gradkin.gradients.gradient_features import num_examples as count_examples
from gradkin.matrices.per_example import hashable
from gradkin.typing import Array, PRNGKey, PyTree, Scalar


class Checkpoints(NamedTuple):
    """What is kept after each of ``C`` epochs; every leaf has a leading axis ``C``.

    Attributes:
      params: the parameters.
      moments: Adam's `AdamMoments`, or None where the optimizer is another.
      learning_rates: mean rate of each epoch, ``[C]``.
    """

    params: PyTree
    moments: AdamMoments | None
    learning_rates: Float[Array, " checkpoints"]


def warm_up(
    key: PRNGKey,
    loss_fn: Callable[..., Any],
    params: PyTree,
    pool: PyTree,
    *,
    optimizer: optax.GradientTransformation,
    learning_rate: Scalar | Callable[..., Any],
    batch_size: int,
    fraction: float | int = 0.05,
    num_examples: int | None = None,
    epochs: int = 4,
    sharding: jax.sharding.NamedSharding | None = None,
) -> tuple[Checkpoints, Int[Array, " chosen"]]:
    """Train on a few random examples of the pool, and keep every epoch's state (Xia et al. 2024).

    Each epoch goes through the examples once, in an order of its own, by steps on the mean loss of
    a batch; the last batch of an epoch is smaller where ``batch_size`` does not divide them. Fewer
    examples than ``batch_size`` are one batch.
    Traceable; every process of several calls it with the same arguments.

    Args:
      key: PRNG key.
      loss_fn: ``loss_fn(params, example)`` -> scalar.
      params: where training starts; what is frozen is closed over by ``loss_fn``, which is then
        made inside a `jax.jit` that takes it as an argument: see `less_features`.
      pool: ``n`` examples, batched.
      optimizer: optax, with its schedule.
      learning_rate: what ``optimizer`` uses: a number, or its schedule ``step -> rate``.
      batch_size: examples of a step.
      fraction: share of the pool, in (0, 1]: the nearest whole number of examples, at least one.
      num_examples: how many instead of ``fraction``, a positive integer.
      epochs: ``C``, how often the examples are gone through.
      sharding: how the examples of a batch lie over devices, such as
        ``NamedSharding(mesh, PartitionSpec("data"))``, for training in parallel; ``batch_size`` is
        then a multiple of the number of devices.

    Returns:
      `Checkpoints`, and the numbers of the examples that were trained on.

    Raises:
      ValueError: options outside their range, an empty pool, a rate that is negative, infinite or
        NaN at any step (where it can be read), or an optimizer whose moments are not like
        ``params`` (see `adam_moments`).

    Example:
      >>> import jax, jax.numpy as jnp, optax
      >>> from gradkin import selection
      >>> loss = lambda w, x: jnp.sum((w - x) ** 2)
      >>> checkpoints, used = selection.warm_up(
      ...     jax.random.key(0), loss, jnp.zeros(2), jnp.ones((40, 2)),
      ...     optimizer=optax.adam(0.1), learning_rate=0.1, fraction=0.2, epochs=3, batch_size=4,
      ... )
      >>> used.shape, checkpoints.params.shape, checkpoints.moments.count.tolist()
      ((8,), (3, 2), [2, 4, 6])

    References:
      Xia et al. (2024), "LESS: Selecting Influential Data for Targeted Instruction Tuning",
      arXiv:2402.04333, sec. 4.1. :cite:`less-data-selection`
    """
    total = count_examples(pool, "pool")
    check_optimizer(optimizer)
    if num_examples is None:
        count = fraction_of(fraction, total)
    else:
        count = num_examples
        if not checks.is_integer(count, least=1) or count > total:
            raise ValueError(
                f"Expected num_examples to be an integer from 1 to {total}, got {num_examples!r}."
            )
    for name, value in (("batch_size", batch_size), ("epochs", epochs)):
        if not checks.is_integer(value, least=1):
            raise ValueError(f"Expected {name} to be a positive integer, got {name}={value!r}.")
    schedule, rate = None, 0.0
    if callable(learning_rate):
        schedule = hashable(learning_rate)
        steps = int(epochs) * -(-int(count) // int(batch_size))
        _check_rates(_rates(schedule=schedule, steps=steps))
    else:
        _check_rates(learning_rate)
        rate = learning_rate
    return _train(
        key,
        params,
        pool,
        rate,
        loss_fn=hashable(loss_fn),
        optimizer=optimizer,
        schedule=schedule,
        count=int(count),
        epochs=int(epochs),
        # A batch that lies over devices stays a multiple of their number.
        batch_size=int(batch_size if sharding is not None else min(batch_size, count)),
        sharding=sharding,
    )


def fraction_of(fraction: float | int, total: int, *, name: str = "fraction") -> int:
    """The nearest whole number of ``total`` examples, at least one.

    Raises:
      TypeError: no number.
      ValueError: not in (0, 1].
    """
    if isinstance(fraction, bool | str) or np.ndim(fraction):
        raise TypeError(f"Expected {name} to be a number in (0, 1], got {fraction!r}.")
    if not 0 < fraction <= 1:
        raise ValueError(f"Expected {name} in (0, 1], got {name}={fraction}.")
    return max(1, round(float(fraction) * total))


def check_optimizer(optimizer: Any) -> None:
    """Raise TypeError unless this is one of optax, made with its options."""
    if not all(hasattr(optimizer, name) for name in ("init", "update")):
        raise TypeError(
            "Expected an optimizer of optax, such as optax.adam(1e-3), got "
            f"{getattr(optimizer, '__name__', repr(optimizer))}."
        )


def _train_plain(
    key: PRNGKey,
    params: PyTree,
    pool: PyTree,
    rate: Scalar,
    *,
    loss_fn: Callable[..., Any],
    optimizer: optax.GradientTransformation,
    schedule: Callable[..., Any] | None,
    count: int,
    epochs: int,
    batch_size: int,
    sharding: jax.sharding.NamedSharding | None,
) -> tuple[Checkpoints, Array]:
    for_choice, for_order = jax.random.split(key)
    chosen = jax.random.permutation(for_choice, count_examples(pool))[:count]
    examples = jax.tree.map(lambda x: jnp.asarray(x)[chosen], pool)
    steps = -(-count // batch_size)
    # Without weak types, so that the state after a step is typed as before it.
    params = jax.tree.map(lambda x: jnp.array(x, jnp.result_type(x)), params)

    def step(state: Any, places: Array) -> tuple[Any, None]:
        params, opt_state = state
        kept = places < count
        batch = jax.tree.map(lambda x: x[jnp.minimum(places, count - 1)], examples)
        if sharding is not None:
            batch = jax.lax.with_sharding_constraint(batch, sharding)

        def mean_loss(params: PyTree) -> Array:
            losses = jax.vmap(loss_fn, (None, 0))(params, batch)
            return jnp.sum(jnp.where(kept, losses, 0)) / jnp.sum(kept.astype(losses.dtype))

        grads = jax.grad(mean_loss)(params)
        return optim.update(optimizer, grads, opt_state, params), None

    def epoch(state: Any, key: PRNGKey) -> tuple[Any, Any]:
        order = jax.random.permutation(key, count)
        fill = jnp.full(steps * batch_size - count, count, order.dtype)
        places = jnp.concatenate([order, fill]).reshape(steps, batch_size)
        state, _ = jax.lax.scan(step, state, places)
        params, opt_state = state
        moments = adam_moments(opt_state, params) if adam_states(opt_state) else None
        return state, (params, moments)

    start = params, optimizer.init(params)
    _, (trained, moments) = jax.lax.scan(epoch, start, jax.random.split(for_order, epochs))
    rates = _mean_rates(schedule, rate, epochs, steps)
    return Checkpoints(trained, moments, rates), chosen


_train = jax.jit(
    _train_plain,
    static_argnames=(
        "loss_fn",
        "optimizer",
        "schedule",
        "count",
        "epochs",
        "batch_size",
        "sharding",
    ),
    inline=True,
)


def _mean_rates(
    schedule: Callable[..., Any] | None, rate: Scalar, epochs: int, steps: int
) -> Float[Array, " checkpoints"]:
    """The mean rate of each epoch's steps."""
    if schedule is None:
        return jnp.broadcast_to(jnp.asarray(rate, float), (epochs,))
    rates = _rates(schedule=schedule, steps=epochs * steps)
    return jnp.mean(rates.reshape(epochs, steps), axis=1)


@functools.partial(jax.jit, static_argnames=("schedule", "steps"), inline=True)
def _rates(*, schedule: Callable[..., Any], steps: int) -> Float[Array, " steps"]:
    """The rate of every step."""
    # Schedules mix step counts and floats.
    with jax.numpy_dtype_promotion("standard"):
        return jax.vmap(lambda step: jnp.asarray(schedule(step), float))(
            jnp.arange(steps, dtype=np.int32)
        )


def _check_rates(rates: Any) -> None:
    if checks.is_concrete(rates):
        values = np.asarray(rates)
        bad = ~(np.isfinite(values) & (values >= 0))
        if np.any(bad):
            first = "" if not values.ndim else f" at step {np.argmax(bad)}"
            raise ValueError(
                f"Expected a learning_rate that is finite and >= 0, got {values[bad][0]}{first}."
            )
