"""Random tasks: what the context shows and what is asked for, with an independent key per draw."""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float

from gradkin import checks
from gradkin.typing import Array, IntScalar, PRNGKey, Scalar

LAWS = ("uniform", "normal", "laplace")


class Tasks(NamedTuple):
    """A batch of in-context tasks; drop the leading axis for one task.

    x: context inputs ``[tasks, context, inputs]``; y: context targets ``[tasks, context,
    outputs]``; query: the input asked about ``[tasks, inputs]``; target: its answer
    ``[tasks, outputs]``.
    """

    x: Any
    y: Any
    query: Any
    target: Any


def quantile(u: Array, law: str) -> Array:
    """Send uniforms on (-1, 1) to a law of mean 0 and variance 1, by its quantile function."""
    if law == "uniform":
        return u * math.sqrt(3.0)
    if law == "normal":
        return jax.lax.erf_inv(u) * math.sqrt(2.0)
    return -jnp.sign(u) * jnp.log1p(-jnp.abs(u)) * math.sqrt(0.5)


def symmetric_uniforms(key: PRNGKey, shape: tuple[int, ...]) -> Array:
    """Uniforms on (-1, 1), the end at -1 left out, where quantiles are infinite."""
    return jax.random.uniform(key, shape, minval=-1 + 2**-23, maxval=1.0)


@functools.partial(
    jax.jit, static_argnames=("num_tasks", "num_context", "num_inputs", "num_outputs", "law")
)
def linear_tasks(
    key: PRNGKey,
    num_tasks: int,
    *,
    num_context: int = 10,
    num_inputs: int = 10,
    num_outputs: int = 1,
    width: Scalar = 1.0,
    law: str = "uniform",
    scales: Float[Array, " inputs"] | None = None,
    weight_scale: Scalar = 1.0,
    noise: Scalar | None = None,
) -> Tasks:
    """Linear regression tasks (von Oswald et al. 2023, section 3): a new teacher for each.

    The teacher is W ~ N(0, weight_scale^2) entrywise, the targets are y = W x + noise * N(0, 1),
    and the answer W x_q carries no noise.

    Args:
      key: PRNG key; teacher, inputs and noise are independent draws.
      num_tasks: number of tasks.
      num_context: examples shown per task, > 0.
      num_inputs: dimension of x, > 0.
      num_outputs: dimension of y, > 0.
      width: coordinates are U(-width/2, width/2), or another law of the same variance
        width^2 / 12.
      law: "uniform", "normal" or "laplace", the law of each coordinate.
      scales: one factor per input coordinate, for an anisotropic input law; ones by default.
      weight_scale: standard deviation of the teacher's entries.
      noise: standard deviation of the noise on context targets; None is no noise.

    Returns:
      ``Tasks`` with a leading axis of ``num_tasks``.

    Raises:
      ValueError: for a size that is not positive or an unknown law.

    Example:
      >>> import jax
      >>> from gradkin import icl
      >>> tasks = icl.linear_tasks(jax.random.key(0), 4, num_context=7)
      >>> tasks.x.shape, tasks.y.shape, tasks.query.shape, tasks.target.shape
      ((4, 7, 10), (4, 7, 1), (4, 10), (4, 1))

    Note:
      The paper's text says U(-1, 1); only width 1, the reference code's setting, gives the
      published loss level of about 0.2.

    References:
      von Oswald et al. (2023), "Transformers learn in-context by gradient descent",
      arXiv:2212.07677. :cite:`icl-gradient-descent`
    """
    checks.positive(
        num_tasks=num_tasks, num_context=num_context, num_inputs=num_inputs, num_outputs=num_outputs
    )
    checks.one_of(LAWS, law=law)
    if scales is not None and scales.shape != (num_inputs,):
        raise ValueError(
            f"Expected scales to have one entry per input, got scales.shape={scales.shape} and "
            f"num_inputs={num_inputs}."
        )
    # Teacher and inputs are disjoint rows of one draw: it compiles in half the time of two.
    key_draw, key_noise = jax.random.split(key)
    u = symmetric_uniforms(key_draw, (num_tasks, num_context + 1 + num_outputs, num_inputs))
    teacher = quantile(u[:, num_context + 1 :], "normal") * weight_scale
    x = quantile(u[:, : num_context + 1], law) * (width * math.sqrt(1 / 12))
    if scales is not None:
        x = x * scales[None, None]
    y = jnp.einsum("bni,boi->bno", x, teacher)
    shown = y[:, :-1]
    if noise is not None:
        shown = shown + noise * jax.random.normal(key_noise, shown.shape)
    return Tasks(x=x[:, :-1], y=shown, query=x[:, -1], target=y[:, -1])


@functools.partial(jax.jit, static_argnames=("num_tasks", "num_context", "num_inputs"))
def shifted_tasks(
    key: PRNGKey,
    num_tasks: int,
    *,
    num_context: int = 10,
    num_inputs: int = 10,
    scale: Scalar = 1.0,
) -> Tasks:
    """Linear tasks whose inputs follow another law than uniform (von Oswald et al. 2023, OOD).

    Each task draws one of the exponential, the normal and the Laplace law; its inputs and its
    query are divided by the Frobenius norm of the context inputs and multiplied by ``scale``.

    Args:
      key: PRNG key.
      num_tasks: number of tasks, > 0.
      num_context: examples shown per task.
      num_inputs: dimension of x.
      scale: Frobenius norm of each task's context inputs.

    Returns:
      ``Tasks`` with a leading axis of ``num_tasks`` and one output.

    Raises:
      ValueError: for a size that is not positive.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from gradkin import icl
      >>> tasks = icl.shifted_tasks(jax.random.key(0), 2, scale=3.0)
      >>> [round(float(jnp.linalg.norm(x)), 3) for x in tasks.x]
      [3.0, 3.0]

    References:
      von Oswald et al. (2023), arXiv:2212.07677. :cite:`icl-gradient-descent`
    """
    checks.positive(num_tasks=num_tasks, num_context=num_context, num_inputs=num_inputs)
    key_law, key_inputs = jax.random.split(key)
    u = symmetric_uniforms(key_inputs, (num_tasks, num_context + 2, num_inputs))
    chosen = jax.random.randint(key_law, (num_tasks, 1, 1), 0, 3)
    teacher, u = quantile(u[:, :1], "normal"), u[:, 1:]
    x = jnp.where(chosen == 0, quantile(u, "normal"), quantile(u, "laplace"))
    x = jnp.where(chosen == 1, -jnp.log1p(-(u + 1) / 2), x)
    x = x * scale / jnp.linalg.norm(x[:, :-1], axis=(1, 2), keepdims=True)
    y = jnp.einsum("bni,boi->bno", x, teacher)
    return Tasks(x=x[:, :-1], y=y[:, :-1], query=x[:, -1], target=y[:, -1])


@jax.jit
def replace_targets(key: PRNGKey, tasks: Tasks, num_replaced: IntScalar) -> Tasks:
    """Replace context targets by N(0, 1), at random positions (von Oswald et al. 2023).

    Args:
      key: PRNG key.
      tasks: ``Tasks`` with a leading task axis.
      num_replaced: how many of each task's context targets are replaced; may be traced. None
        for 0 or less, all for as many as there are or more.

    Returns:
      The tasks with noisy context targets; queries and answers stay.

    Example:
      >>> import jax
      >>> from gradkin import icl
      >>> tasks = icl.linear_tasks(jax.random.key(0), 5)
      >>> noisy = icl.replace_targets(jax.random.key(1), tasks, 3)
      >>> int((noisy.y != tasks.y).sum())
      15

    References:
      von Oswald et al. (2023), arXiv:2212.07677. :cite:`icl-gradient-descent`
    """
    num_tasks, num_context, _ = tasks.y.shape
    key_where, key_noise = jax.random.split(key)
    # The ranks of independent uniforms are a uniform permutation of each row.
    order = jax.random.uniform(key_where, (num_tasks, num_context)).argsort(axis=1).argsort(axis=1)
    noise = jax.random.normal(key_noise, tasks.y.shape)
    return tasks._replace(y=jnp.where((order < num_replaced)[:, :, None], noise, tasks.y))


@functools.partial(jax.jit, static_argnames=("num_tasks", "num_context", "tied"))
def sine_tasks(
    key: PRNGKey,
    num_tasks: int,
    *,
    num_context: int = 10,
    width: Scalar = 10.0,
    tied: bool = False,
) -> Tasks:
    """Sine waves y = A sin(x + phi) of random amplitude and phase (von Oswald et al. 2023).

    A ~ U(0.1, 0.5), phi ~ U(0, pi), x ~ U(-width/2, width/2).

    Args:
      key: PRNG key.
      num_tasks: number of tasks, > 0.
      num_context: examples shown per task.
      width: length of the input interval around 0.
      tied: draw amplitude and phase from one uniform number, as the reference code does by
        using one key for both, so that the phase tells the amplitude.

    Returns:
      ``Tasks`` with one input and one output.

    Raises:
      ValueError: for a size that is not positive.

    Example:
      >>> import jax
      >>> from gradkin import icl
      >>> icl.sine_tasks(jax.random.key(0), 3).x.shape
      (3, 10, 1)

    Note:
      Independent keys are the default: with the tied draw a task has one degree of freedom.

    References:
      von Oswald et al. (2023), arXiv:2212.07677. :cite:`icl-gradient-descent`
    """
    checks.positive(num_tasks=num_tasks, num_context=num_context)
    key_amplitude, key_phase, key_x = jax.random.split(key, 3)
    level = jax.random.uniform(key_amplitude, (num_tasks, 1, 1))
    turn = level if tied else jax.random.uniform(key_phase, (num_tasks, 1, 1))
    x = (jax.random.uniform(key_x, (num_tasks, num_context + 1, 1)) - 0.5) * width
    y = (0.1 + 0.4 * level) * jnp.sin(x + math.pi * turn)
    return Tasks(x=x[:, :-1], y=y[:, :-1], query=x[:, -1], target=y[:, -1])


@functools.partial(
    jax.jit, static_argnames=("num_tasks", "num_context", "num_inputs", "num_classes")
)
def classification_tasks(
    key: PRNGKey,
    num_tasks: int,
    *,
    num_context: int = 40,
    num_inputs: int = 10,
    num_classes: int = 3,
    width: Scalar = 1.0,
) -> Tasks:
    """Linear classification tasks: the label is the largest score of a random linear teacher.

    Args:
      key: PRNG key.
      num_tasks: number of tasks.
      num_context: examples shown per task.
      num_inputs: dimension of x.
      num_classes: number of classes C, >= 2.
      width: coordinates are U(-width/2, width/2).

    Returns:
      ``Tasks`` whose y and target are one-hot rows of length C.

    Raises:
      ValueError: for a size that is not positive or fewer than two classes.

    Example:
      >>> import jax
      >>> from gradkin import icl
      >>> icl.classification_tasks(jax.random.key(0), 2).y.sum(-1).min().item()
      1.0
    """
    if num_classes < 2:
        raise ValueError(f"Expected num_classes >= 2, got num_classes={num_classes}.")
    scores = linear_tasks(
        key,
        num_tasks,
        num_context=num_context,
        num_inputs=num_inputs,
        num_outputs=num_classes,
        width=width,
    )
    return scores._replace(
        y=jax.nn.one_hot(scores.y.argmax(-1), num_classes),
        target=jax.nn.one_hot(scores.target.argmax(-1), num_classes),
    )
