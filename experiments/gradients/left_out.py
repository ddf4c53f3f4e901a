"""Leaving one example out of a logistic regression: every retraining, and influence functions."""

import functools

import jax
import jax.numpy as jnp

import gradkin
from gradkin import gradients


def correlation(a, b):
    """Pearson's, over training examples, averaged over queries."""
    a, b = (x - jnp.mean(x, axis=0, keepdims=True) for x in (a, b))
    scale = jnp.sqrt(jnp.sum(a**2, axis=0) * jnp.sum(b**2, axis=0))
    return jnp.mean(jnp.sum(a * b, axis=0) / scale)


@functools.partial(jax.jit, static_argnums=0)
def logistic(config, key, data):
    """Leaving one out of a regression of odd against even digits, exactly and by influence."""
    decay, steps = 0.01, 12
    chosen, asked, batches = jax.random.split(key, 3)
    sign = lambda y: 2.0 * (y % 2).astype(jnp.float32) - 1
    pick = lambda k, part, n: jax.random.permutation(k, len(data["y" + part]))[:n]
    rows, tests = pick(chosen, "", config.train), pick(asked, "_test", config.queries)
    # The directions of the inputs that vary most; a Newton step is small then.
    x = data["x"][rows]
    basis = jnp.linalg.svd(x, full_matrices=False)[2][: min(32, config.train)].T
    train = x @ basis, sign(data["y"][rows])
    queries = data["x_test"][tests] @ basis, sign(data["y_test"][tests])

    def regression_loss(w, example):
        x, y = example
        return jax.nn.softplus(-y * (x @ w)) + 0.5 * decay * jnp.sum(w**2)

    def fit(weights):
        x, y = train
        share = weights / config.train

        def newton(w, _):
            p = jax.nn.sigmoid(-y * (x @ w))
            grad = -(share * y * p) @ x + decay * jnp.sum(share) * w
            scaled = x * (share * p * (1 - p))[:, None]
            H = scaled.T @ x + decay * jnp.sum(share) * jnp.eye(len(w))
            return w - jnp.linalg.solve(H, grad), None

        return jax.lax.scan(newton, jnp.zeros(x.shape[1]), length=steps)[0]

    w = fit(jnp.ones(config.train))
    losses = lambda weights: jax.vmap(regression_loss, (None, 0))(fit(weights), queries)
    exact = gradients.leave_one_out(losses, config.train, batch_size=50)
    G, Q = (gradkin.per_example_grads(regression_loss)(w, batch) for batch in (train, queries))
    H = gradkin.hessian(regression_loss)(w, train)
    found = gradients.influence(G, Q, H, damping=0.0)
    series = gradients.lissa(
        batches,
        gradkin.hessian(regression_loss),
        w,
        (train,),
        Q[0],
        steps=500,
        batch_size=min(50, config.train),
        scale=10.0,
    )
    return {
        "left_out": correlation(found.scores, exact),
        "left_out_exact": exact[:, 0],
        "left_out_predicted": found.scores[:, 0] / config.train,
        "cg_residual": jnp.max(found.residual_norms),
        "lissa_residual": series.residual_norm,
    }
