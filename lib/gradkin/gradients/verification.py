"""A wrong factor in private training is a privacy bug: compare with plain gradients."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gradkin.matrices.per_example import per_example_grads

TOLERANCE = 1e-3


def verify_rows(
    loss_fn: Callable[..., Any], params: Any, batch: Any, axes: Any, route: str
) -> None:
    """Compare norms and a weighted sum of two rows with `jax.grad`, on made-up values.

    Runs while the caller is traced, so once per compiled shape. Rows whose plain gradient is not
    finite at the made-up values say nothing and are skipped.

    Raises:
      RuntimeError: they differ by more than 1e-3 relative to the plain gradients.
    """
    rng = np.random.default_rng(0)
    with jax.ensure_compile_time_eval():
        values = jax.tree.map(lambda p: _made_up(rng, np.shape(p), _dtype(p), 0.1), params)
        rows = tuple(
            jax.tree.map(lambda x: _made_up(rng, np.shape(x), _dtype(x), 1.0), arg)
            if axis is None
            else jax.tree.map(lambda x: _made_up(rng, (2, *np.shape(x)[1:]), _dtype(x), 1.0), arg)
            for axis, arg in zip(axes, batch, strict=True)
        )

        @jax.jit
        def both(params: Any, *rows: Any) -> Any:
            weights = jnp.asarray([0.3, 0.7], np.float32)
            G = per_example_grads(loss_fn, in_axes=(None, *axes), route=route)(params, *rows)
            plain = jax.vmap(jax.grad(loss_fn), in_axes=(None, *axes))(params, *rows)
            flat = jnp.concatenate(
                [g.reshape((2, -1)).astype(np.float32) for g in jax.tree.leaves(plain)], axis=1
            )
            ours = jnp.concatenate(
                [jnp.ravel(g).astype(np.float32) for g in jax.tree.leaves(weights @ G)]
            )
            norms = jnp.linalg.norm(flat, axis=1)
            scale = jnp.max(norms)
            return (
                jnp.max(jnp.abs(G.norms().astype(np.float32) - norms)),
                jnp.linalg.norm(ours - weights @ flat),
                scale,
            )

        of_norms, of_sum, scale = (float(x) for x in both(values, *rows))
    if np.isfinite(scale) and not max(of_norms, of_sum) <= TOLERANCE * scale + 1e-30:
        raise RuntimeError(
            "The recorded per-example gradients differ from jax.grad on made-up examples: norms by "
            f"{of_norms:.2e}, a weighted sum by {of_sum:.2e}, at norms of {scale:.2e}. Please "
            "report the loss; route='dense' forms each gradient instead."
        )


def _dtype(x: Any) -> Any:
    return x.dtype if hasattr(x, "dtype") else jnp.asarray(x).dtype


def _made_up(rng: np.random.Generator, shape: tuple[int, ...], dtype: Any, scale: float) -> Any:
    if jnp.issubdtype(dtype, jax.dtypes.prng_key):
        key = jax.random.key(0)
        return jnp.broadcast_to(key, shape) if shape else key
    if jnp.issubdtype(dtype, jnp.floating):
        return jnp.asarray(scale * rng.standard_normal(shape), dtype)
    if jnp.issubdtype(dtype, np.bool_):
        return jnp.ones(shape, bool)
    # Small numbers: valid class labels and token ids.
    return jnp.asarray(rng.integers(0, 2, shape), dtype)
