"""The installed JAX computes what it should: two releases sum products wrongly on CPUs."""

import jax
import numpy as np


def test_sums_of_products():
    """The gradient of a mapped normalisation, which jaxlib 0.10.2 gets wrong (jax-ml/jax#39103)."""

    def normalized(x):
        x = x - x.mean(-1, keepdims=True)
        return x * jax.lax.rsqrt(jax.numpy.square(x).mean(-1, keepdims=True) + 1e-5)

    def pulled(x):
        pull = jax.vjp(normalized, x)[1]
        return jax.vmap(lambda cotangent: pull(cotangent)[0])(cotangents)

    x = jax.random.normal(jax.random.key(0), (8, 256, 256))
    cotangents = jax.random.normal(jax.random.key(1), (2, 256, 256))
    together, alone = jax.jit(jax.vmap(pulled))(x)[0], jax.jit(pulled)(x[0])
    np.testing.assert_allclose(together, alone, atol=1e-5)
