"""Softmax regression: moving the weights and moving the data shift the labels alike."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float

from gradkin import checks
from gradkin.typing import Array, Scalar


def softmax_regression_loss(
    a: Float[Array, "n d"], x: Float[Array, " d"], b: Float[Array, " n"]
) -> Float[Array, ""]:
    """Loss of softmax regression, 1/2 |softmax(A x) - b|^2 (Li et al. 2023).

    Args:
      a: the data A, one token per row.
      x: the weights.
      b: the label, non-negative with sum at most 1.

    Returns:
      The loss.

    Example:
      >>> import jax.numpy as jnp
      >>> from gradkin import icl
      >>> b = jnp.array([1.0, 0.0])
      >>> float(icl.softmax_regression_loss(jnp.eye(2), jnp.zeros(2), b))
      0.25

    References:
      Li et al. (2023), "The Closeness of In-Context Learning and Weight Shifting for Softmax
      Regression", arXiv:2304.13276. :cite:`softmax-regression-icl`
    """
    return ((jax.nn.softmax(a @ x) - b) ** 2).sum() / 2


def softmax_regression_grad(
    a: Float[Array, "n d"],
    x: Float[Array, " d"],
    b: Float[Array, " n"],
    *,
    wrt: str = "x",
) -> Array:
    """Gradient of the loss with respect to the weights or the data, in closed form.

    With f = softmax(A x) and g = J (f - b), J = diag(f) - f f^T: A^T g for x, g x^T for A.

    Args:
      a: the data A, one token per row.
      x: the weights.
      b: the label.
      wrt: "x" or "a".

    Returns:
      An array like ``x`` or like ``a``.

    Raises:
      ValueError: for another ``wrt``.

    Example:
      >>> import jax.numpy as jnp
      >>> from gradkin import icl
      >>> b = jnp.array([1.0, 0.0])
      >>> icl.softmax_regression_grad(jnp.eye(2), jnp.zeros(2), b).tolist()
      [-0.25, 0.25]

    References:
      Li et al. (2023), arXiv:2304.13276. :cite:`softmax-regression-icl`
    """
    checks.one_of(("x", "a"), wrt=wrt)
    f = jax.nn.softmax(a @ x)
    g = f * (f - b - f @ (f - b))
    return a.T @ g if wrt == "x" else jnp.outer(g, x)


def softmax_gd(
    a: Float[Array, "n d"],
    b: Float[Array, " n"],
    *,
    rate: Scalar,
    num_steps: int = 1,
    initial: Float[Array, " d"] | None = None,
) -> Float[Array, "iterates d"]:
    """Gradient descent on softmax regression, every iterate.

    From x = 0 the first step is (rate/n) A^T (I - 11^T/n) b, linear in the label: one linear
    attention layer with values b_j - 1/n performs it exactly when b sums to 1.

    Args:
      a: the data A, one token per row.
      b: the label.
      rate: the learning rate; the loss never rises for rate <= 0.8 / |A|^2.
      num_steps: number of steps, > 0.
      initial: the first weights; zero by default.

    Returns:
      ``[num_steps + 1, d]``, the first weights first.

    Raises:
      ValueError: for ``num_steps`` <= 0.

    Example:
      >>> import jax.numpy as jnp
      >>> from gradkin import icl
      >>> icl.softmax_gd(jnp.eye(2), jnp.array([1.0, 0.0]), rate=2.0)[-1].tolist()
      [0.5, -0.5]

    References:
      Li et al. (2023), arXiv:2304.13276. :cite:`softmax-regression-icl`
    """
    checks.positive(num_steps=num_steps)
    initial = jnp.zeros(a.shape[1], a.dtype) if initial is None else initial

    def step(x, _):
        x = x - rate * softmax_regression_grad(a, x, b)
        return x, x

    return jnp.concatenate([initial[None], jax.lax.scan(step, initial, length=num_steps)[1]])


def label_shift(
    a: Float[Array, "n d"],
    x: Float[Array, " d"],
    new_a: Float[Array, "n d"],
    new_x: Float[Array, " d"],
) -> Float[Array, " n"]:
    """By how much a move of the weights or of the data shifts the label.

    f(A', x') - b = f(A, x) - b' holds exactly for b' = b + f(A, x) - f(A', x'); this is b' - b.

    Args:
      a: the data before.
      x: the weights before.
      new_a: the data after.
      new_x: the weights after.

    Returns:
      ``[n]``; its entries sum to 0.

    Example:
      >>> import jax.numpy as jnp
      >>> from gradkin import icl
      >>> a, x = jnp.eye(2), jnp.zeros(2)
      >>> icl.label_shift(a, x, a, x).tolist()
      [0.0, 0.0]

    References:
      Li et al. (2023), arXiv:2304.13276. :cite:`softmax-regression-icl`
    """
    return jax.nn.softmax(a @ x) - jax.nn.softmax(new_a @ new_x)


class ShiftBounds(NamedTuple):
    """Size of a label shift and upper bounds on it.

    actual: |b' - b|; path: the bound by the move of the scores, 1/2 |A' x' - A x|; tight:
    1/2 |A| |dx| or 1/2 |dA| |x|; log_paper: natural logarithm of the bound with the paper's
    constant; move: |dx| or |dA|. Norms are Euclidean and spectral.
    """

    actual: Float[Array, ""]
    path: Float[Array, ""]
    tight: Float[Array, ""]
    log_paper: Float[Array, ""]
    move: Float[Array, ""]


def shift_bounds(
    a: Float[Array, "n d"],
    x: Float[Array, " d"],
    *,
    new_a: Float[Array, "n d"] | None = None,
    new_x: Float[Array, " d"] | None = None,
    exponent: Scalar = 10.0,
    power: Scalar = 1.5,
) -> ShiftBounds:
    """Bounds on the label shift caused by moving the weights or the data.

    Softmax is 1/2-Lipschitz in the Euclidean norm, so |b' - b| <= 1/2 |A' x' - A x|, which is at
    most 1/2 |A| |dx| for weights and 1/2 |dA| |x| for data. The paper's bound is M |dx| or
    M |dA| with M = n^power exp(exponent R^2), R the largest of |A|, |A'|, |x|, |x'|.

    Args:
      a: the data before.
      x: the weights before.
      new_a: the data after, to bound a move of the data.
      new_x: the weights after, to bound a move of the weights.
      exponent: factor of R^2 in the paper's constant.
      power: power of n in the paper's constant.

    Returns:
      ``ShiftBounds``; the paper's bound as a logarithm because it overflows at moderate R.

    Raises:
      ValueError: unless exactly one of ``new_a`` and ``new_x`` is given.

    Example:
      >>> import jax.numpy as jnp
      >>> from gradkin import icl
      >>> bounds = icl.shift_bounds(jnp.eye(2), jnp.zeros(2), new_x=jnp.array([1.0, 0.0]))
      >>> bool(bounds.actual <= bounds.path <= bounds.tight)
      True

    Note:
      The form of the constant is exp(O(R^2 + log n)) in the abstract; the two numbers are
      remembered, not checked against the text, and therefore arguments. The paper assumes
      R >= 4 and small moves; the tight bound needs neither. That both moves are bounded does not
      by itself show that attention performs a step of gradient descent.

    References:
      Li et al. (2023), Theorems on bounded shifts, arXiv:2304.13276.
      :cite:`softmax-regression-icl`
    """
    if (new_a is None) == (new_x is None):
        raise ValueError("Expected exactly one of new_a and new_x.")
    norm = lambda m: jnp.linalg.norm(m, 2)
    if new_x is not None:
        new_a = a
        move = norm(new_x - x)
        tight = norm(a) * move / 2
    else:
        assert new_a is not None
        new_x = x
        move = norm(new_a - a)
        tight = norm(x) * move / 2
    radius = jnp.stack([norm(a), norm(new_a), norm(x), norm(new_x)]).max()
    log_n = jnp.log(jnp.asarray(a.shape[0], a.dtype))
    return ShiftBounds(
        actual=norm(label_shift(a, x, new_a, new_x)),
        path=norm(new_a @ new_x - a @ x) / 2,
        tight=tight,
        log_paper=jnp.asarray(power * log_n + exponent * radius * radius + jnp.log(move)),
        move=move,
    )


def equivalent_data_shift(
    a: Float[Array, "n d"], x: Float[Array, " d"], dx: Float[Array, " d"]
) -> Float[Array, "n d"]:
    """The smallest move of the data that does what a move of the weights does.

    dA = (A dx) x^T / |x|^2 has rank one and gives (A + dA) x = A (x + dx).

    Args:
      a: the data A.
      x: the weights, not zero.
      dx: the move of the weights.

    Returns:
      dA, like ``a``.

    Raises:
      ValueError: where ``x`` is known to be zero.

    Example:
      >>> import jax.numpy as jnp
      >>> from gradkin import icl
      >>> x, dx = jnp.array([2.0, 0.0]), jnp.array([0.0, 1.0])
      >>> icl.equivalent_data_shift(jnp.eye(2), x, dx).tolist()
      [[0.0, 0.0], [0.5, 0.0]]

    References:
      Li et al. (2023), arXiv:2304.13276, compares the two moves; the map is derived here.
      :cite:`softmax-regression-icl`
    """
    if checks.is_concrete(x) and not x.any():
        raise ValueError(f"Expected x != 0, got x={x}: at zero weights no move of A has an effect.")
    return jnp.outer(a @ dx, x / (x @ x))


def equivalent_weight_shift(
    a: Float[Array, "n d"], x: Float[Array, " d"], da: Float[Array, "n d"]
) -> tuple[Float[Array, " d"], Float[Array, ""]]:
    """The move of the weights nearest to a move of the data, and what it misses.

    dx = A^+ (dA x), exact where dA x lies in the range of A, up to a multiple of the vector of
    ones, which softmax ignores and which is therefore removed from A and dA x first.

    Args:
      a: the data A.
      x: the weights.
      da: the move of the data.

    Returns:
      ``(dx, residual)``: the move and the norm of what remains of the centred dA x.

    Example:
      >>> import jax.numpy as jnp
      >>> from gradkin import icl
      >>> a, x = jnp.array([[1.0], [0.0]]), jnp.array([2.0])
      >>> dx, residual = icl.equivalent_weight_shift(a, x, 0.5 * a)
      >>> round(float(dx[0]), 5), round(float(residual), 5)
      (1.0, 0.0)

    References:
      Li et al. (2023), arXiv:2304.13276, compares the two moves; the map is derived here.
      :cite:`softmax-regression-icl`
    """
    centered = a - a.mean(0, keepdims=True)
    target = da @ x
    target = target - target.mean()
    dx = jnp.linalg.pinv(centered) @ target
    return dx, jnp.linalg.norm(centered @ dx - target)
