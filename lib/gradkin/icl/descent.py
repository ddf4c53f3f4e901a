"""Gradient descent on the context: what the attention layers are compared with."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Float

from gradkin import checks
from gradkin.typing import Array, Scalar


@functools.partial(jax.jit, static_argnames="num_steps")
def gradient_descent(
    x: Float[Array, "context inputs"],
    y: Float[Array, "context outputs"],
    *,
    rate: Scalar,
    num_steps: int = 1,
    initial: Float[Array, "outputs inputs"] | None = None,
) -> Float[Array, "iterates outputs inputs"]:
    """Full-batch gradient descent on linear regression, every iterate.

    L(W) = 1/(2N) sum_i |W x_i - y_i|^2, W <- W - rate * dL/dW.

    Args:
      x: context inputs.
      y: context targets.
      rate: the learning rate.
      num_steps: number of steps, > 0.
      initial: the first weights; zero by default.

    Returns:
      ``[num_steps + 1, outputs, inputs]``, the first weights first.

    Raises:
      ValueError: for ``num_steps`` <= 0.

    Example:
      >>> import jax.numpy as jnp
      >>> from gradkin import icl
      >>> icl.gradient_descent(jnp.eye(2), jnp.array([[1.0], [2.0]]), rate=1.0)[-1].tolist()
      [[0.5, 1.0]]

    References:
      von Oswald et al. (2023), arXiv:2212.07677. :cite:`icl-gradient-descent`
    """
    checks.positive(num_steps=num_steps)
    if initial is None:
        initial = jnp.zeros((y.shape[1], x.shape[1]), x.dtype)

    def step(weights, _):
        weights = weights - rate / x.shape[0] * ((weights @ x.T - y.T) @ x)
        return weights, weights

    return jnp.concatenate([initial[None], jax.lax.scan(step, initial, length=num_steps)[1]])


@jax.jit
def gd_plus_plus(
    x: Float[Array, "context inputs"],
    y: Float[Array, "context outputs"],
    query: Float[Array, " inputs"],
    *,
    rates: Float[Array, " steps"],
    decays: Float[Array, " decays"],
) -> Float[Array, "iterates outputs"]:
    """Predictions of GD++, two scalars per step (von Oswald et al. 2023).

    A step of gradient descent, written as a change of the targets, with the inputs transformed
    beside it: y_j <- y_j - dW x_j and x_j <- (I - decay X^T X) x_j, context and query alike.
    X^T X then has eigenvalues l (1 - decay l)^2: a better conditioned problem for the next step.
    With ``decays`` zero it is gradient descent.

    Args:
      x: context inputs.
      y: context targets.
      query: the input asked about.
      rates: learning rate of each step.
      decays: gamma of each step.

    Returns:
      ``[steps + 1, outputs]``, the prediction before and after each step.

    Raises:
      ValueError: where ``rates`` and ``decays`` differ in length.

    Example:
      >>> import jax.numpy as jnp
      >>> from gradkin import icl
      >>> x, y, query = jnp.eye(2), jnp.array([[1.0], [2.0]]), jnp.ones(2)
      >>> rates, decays = jnp.array([1.0, 1.0]), jnp.zeros(2)
      >>> icl.gd_plus_plus(x, y, query, rates=rates, decays=decays).tolist()
      [[0.0], [1.5], [2.25]]

    Note:
      Only X^T X and X^T y enter, so a step costs O(inputs^3) whatever the size of the context.

    References:
      von Oswald et al. (2023), section on GD++, arXiv:2212.07677. :cite:`icl-gradient-descent`
    """
    if rates.shape != decays.shape:
        raise ValueError(
            f"Expected one rate and one decay per step, got rates.shape={rates.shape} and "
            f"decays.shape={decays.shape}."
        )

    def step(state, scalars):
        moment, cross, query, prediction = state
        rate, decay = scalars
        prediction = prediction + rate / x.shape[0] * (query @ cross)
        cross = cross - rate / x.shape[0] * (moment @ cross)
        cross = cross - decay * (moment @ cross)
        square = moment @ moment
        query = query - decay * (query @ moment)
        # A moment A for A = I - decay moment, which commutes with moment.
        moment = moment - 2 * decay * square + decay**2 * (square @ moment)
        return (moment, cross, query, prediction), prediction

    start = jnp.zeros(y.shape[1], y.dtype)
    _, predictions = jax.lax.scan(step, (x.T @ x, x.T @ y, query, start), (rates, decays))
    return jnp.concatenate([start[None], predictions])


def line_search(
    loss_fn: Callable[[Array], Array], rates: Float[Array, " rates"]
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """The best of a grid of learning rates, refined by the parabola through its neighbours.

    Args:
      loss_fn: from a rate to a loss; evaluated one rate after the other. Use other tasks here
        than those that the result is reported on.
      rates: increasing and equally spaced rates, three or more.

    Returns:
      ``(rate, loss)``: the refined rate and the loss at it. At the ends of the grid the grid
      point is returned.

    Raises:
      ValueError: for fewer than three rates.

    Example:
      >>> import jax.numpy as jnp
      >>> from gradkin import icl
      >>> rate, loss = icl.line_search(lambda r: (r - 1.3) ** 2, jnp.arange(5.0))
      >>> round(float(rate), 3), round(float(loss), 3)
      (1.3, 0.0)
    """
    if rates.shape[0] < 3:
        raise ValueError(f"Expected three or more rates, got {rates.shape[0]}.")
    losses = jax.lax.map(loss_fn, rates)
    # A diverging rate has a loss of infinity or NaN and cannot be the best.
    losses = jnp.where(jnp.isfinite(losses), losses, jnp.inf)
    best = jnp.argmin(losses)
    inner = jnp.clip(best, 1, rates.shape[0] - 2)
    left, middle, right = losses[inner - 1], losses[inner], losses[inner + 1]
    curvature = left - 2 * middle + right
    spacing = rates[1] - rates[0]
    shift = 0.5 * spacing * (left - right) / jnp.where(curvature > 0, curvature, 1)
    usable = (inner == best) & (curvature > 0) & jnp.isfinite(shift)
    rate = jnp.where(usable, rates[inner] + shift, rates[best])
    return rate, loss_fn(rate)
