"""Rules of one's own, other number types and operations that nobody factors."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from tests.matrices.models.model import Model, normal, plus, weight


def custom_rules() -> Model:
    """A reversed gradient, a stable rule, a linear layer whose rule is written by hand."""

    @jax.custom_vjp
    def reverse(x):
        return x

    reverse.defvjp(lambda x: (x, None), lambda _, g: (-2 * g,))

    @jax.custom_jvp
    def softplus(x):
        return jnp.logaddexp(x, 0.0)

    softplus.defjvps(lambda t, _, x: jax.nn.sigmoid(x) * t)

    @functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
    def linear(x, w, power):
        return x @ w**power

    def forward(x, w, power):
        return x @ w**power, (x, w)

    def backward(power, residual, g):
        x, w = residual
        return g @ (w**power).T, jnp.outer(x, g)  # not the derivative, on purpose

    linear.defvjp(forward, backward)

    def loss(params, x):
        x = softplus(reverse(x @ params["reversed"]))
        x = jnp.tanh(linear(x, params["manual"], 3))
        return jnp.sum(jax.nn.relu(x @ params["last"]) + jax.nn.logsumexp(x))

    params = {name: weight(i, 8, 8) for i, name in enumerate(("reversed", "manual", "last"))}
    return Model(loss, (params, normal(4, 4, 8)))


def spectral() -> Model:
    """A filter in the frequency domain, a complex mixing matrix."""

    def loss(params, x):
        y = jnp.fft.irfft(jnp.fft.rfft(x) * jnp.fft.rfft(params["filter"], n=8))
        mixed = jnp.fft.rfft(y) @ params["mix"]
        return jnp.sum(jnp.abs(mixed) ** 2) + jnp.sum(jnp.tanh(y) * params["phase"].real)

    params = {
        "filter": normal(0, 8),
        "mix": jax.lax.complex(normal(1, 5, 6), normal(2, 5, 6)),
        "phase": jax.lax.complex(normal(3, 8), normal(4, 8)),
    }
    return Model(loss, (params, normal(5, 4, 8)))


def linear_algebra() -> Model:
    """Solves, factorizations, exponentials and sorted entries of parameters."""

    def loss(params, x):
        spd = params["spd"] @ params["spd"].T + jnp.eye(5)
        x = jnp.linalg.solve(spd, x) + jnp.linalg.cholesky(spd) @ x
        x = jax.scipy.linalg.expm(params["skew"] - params["skew"].T) @ x
        x = x @ jax.nn.softmax(params["stochastic"], axis=1)
        x = x @ jnp.kron(params["kron"], jnp.eye(5)[:1])
        return jnp.sum(jnp.sort(params["sorted"]) * x) + jnp.linalg.slogdet(spd)[1]

    params = {
        "spd": weight(0, 5, 5),
        "skew": weight(1, 5, 5),
        "stochastic": weight(2, 5, 5),
        "kron": weight(3, 5, 1),
        "sorted": normal(4, 5),
    }
    return Model(loss, (params, normal(5, 3, 5)))


def half_precision() -> Model:
    """Parameters in bfloat16; a float32 parameter used in bfloat16; the loss in float32."""

    def loss(params, x):
        h = jnp.tanh(plus(x.astype(jnp.bfloat16) @ params["low"], params["bias"]))
        h = jnp.tanh(h @ params["cast"].astype(jnp.bfloat16)).astype(jnp.float32)
        return jnp.sum((h @ params["full"]) ** 2)

    params = {
        "low": weight(0, 12, 12).astype(jnp.bfloat16),
        "bias": normal(1, 12).astype(jnp.bfloat16),
        "cast": weight(2, 12, 12),
        "full": weight(3, 12, 10),
    }
    return Model(loss, (params, normal(4, 4, 3, 12)))


def nested_calls() -> Model:
    """jit in jit in checkpoint, a policy that keeps some products, closed-over constants."""
    constant = np.asarray(normal(7, 10, 10, scale=0.3))

    @jax.jit
    def layer(w, x):
        return jax.jit(jnp.tanh)(x @ w)

    kept = jax.checkpoint_policies.dots_with_no_batch_dims_saveable

    def loss(params, x):
        x = jax.checkpoint(layer)(params["a"], x)
        x = jax.checkpoint(lambda w, x: layer(w, x) @ constant, policy=kept)(params["b"], x)
        return jnp.sum(jax.jit(jax.checkpoint(layer, prevent_cse=False))(params["a"], x))

    return Model(loss, ({"a": weight(0, 10, 10), "b": weight(1, 10, 10)}, normal(2, 4, 2, 10)))


def distances() -> Model:
    """Distances to prototypes, a kernel of landmarks, outer differences."""

    def loss(params, x):
        difference = jnp.broadcast_to(x, params["centers"].shape) - params["centers"]
        near = jnp.exp(-jnp.sum(difference**2, axis=1) / 8)
        cosine = params["landmarks"] @ x / jnp.linalg.norm(params["landmarks"], axis=1)
        return near @ params["head"] @ cosine

    params = {
        "centers": normal(0, 6, 7),
        "landmarks": normal(1, 5, 7),
        "head": weight(2, 6, 5),
    }
    return Model(loss, (params, normal(3, 4, 7)))


MODELS = {
    f.__name__: f
    for f in (custom_rules, spectral, linear_algebra, half_precision, nested_calls, distances)
}
