"""What may be passed: axes, NumPy and Python numbers, traced bounds, effects, shards."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

import gradkin
from tests.matrices import oracle
from tests.matrices.models import dense
from tests.matrices.models.model import Model, normal


def loss(w, x):
    return jnp.sum(jnp.tanh(x @ w))


@pytest.mark.parametrize("batch_size", [None, 2], ids=["recorded", "streamed"])
@pytest.mark.parametrize("axis", [0, 1, -1])
def test_example_axis(axis, batch_size):
    x = normal(1, 3, 5)
    G = gradkin.per_example_grads(loss, in_axes=axis, batch_size=batch_size)(
        normal(0, 5, 4), jnp.moveaxis(x, 0, axis)
    )
    wanted = gradkin.per_example_grads(loss)(normal(0, 5, 4), x)
    np.testing.assert_allclose(G.norms(), wanted.norms(), rtol=1e-5)
    np.testing.assert_allclose(G.clip(1.0).sum(), wanted.clip(1.0).sum(), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(G[1], wanted[1], rtol=1e-5)
    assert G[np.array([2, 0])].shape == (2, 20)


def test_numpy_arguments():
    w, x = np.asarray(normal(0, 5, 4)), np.asarray(normal(1, 3, 5))
    G = gradkin.per_example_grads(loss)(w, x)
    wanted = gradkin.per_example_grads(loss)(jnp.asarray(w), jnp.asarray(x))
    np.testing.assert_array_equal(G.norms(), wanted.norms())
    np.testing.assert_allclose(G @ w, wanted @ jnp.asarray(w), rtol=1e-6)


def test_a_python_number_is_a_parameter():
    G = gradkin.per_example_grads(lambda w, x: w**2 * x)(3.0, jnp.asarray([1.0, -2.0]))
    np.testing.assert_allclose(G.norms(), [6.0, 12.0])
    np.testing.assert_allclose(G.sum(), -6.0)
    assert G.shape == (2, 1)


def test_no_example_axis_in_the_gradient():
    """A loss whose gradient is the same for all examples, and one that is the example."""
    x = jnp.asarray([[1.0, 2.0], [3.0, 4.0], [0.0, 1.0]])
    same = gradkin.per_example_grads(lambda w, x: jnp.sum(w) + jnp.sum(x))(jnp.ones(4), x)
    np.testing.assert_allclose(same.gram(), np.full((3, 3), 4.0))
    np.testing.assert_allclose(np.ones(3) @ same, np.full(4, 3.0))
    np.testing.assert_allclose(same.where(np.array([True, False, True])).sum(), np.full(4, 2.0))
    np.testing.assert_allclose(same[1:].norms(), [2.0, 2.0])
    linear = gradkin.per_example_grads(jnp.vdot)(jnp.zeros(2), x)
    np.testing.assert_allclose(linear.materialize(), x)
    np.testing.assert_allclose(linear.gram(), x @ x.T)


def test_bound_may_be_traced_or_mapped():
    model = dense.mlp(batch=4)
    G = oracle.matrix(model)
    bounds = jnp.asarray([0.0, 0.5, 3.0])
    mapped = jax.jit(jax.vmap(lambda bound: G.clip(bound).norms()))(bounds)
    np.testing.assert_allclose(mapped, np.minimum(G.norms(), bounds[:, None]), rtol=1e-5)


def test_effects_happen_once_per_example():
    seen = []

    def noisy(w, x):
        jax.debug.callback(lambda v: seen.append(float(v)), x[0])
        return loss(w, x)

    x = normal(1, 3, 5)
    gradkin.per_example_grads(noisy)(normal(0, 5, 4), x).norms()
    jax.effects_barrier()
    assert sorted(seen) == sorted(np.asarray(x[:, 0]).tolist())


def test_inside_shard_map(mesh):
    """Each device clips its own rows; the sums are added across devices."""
    w, x = normal(0, 5, 4), normal(1, 16, 5)

    @jax.jit
    @functools.partial(jax.shard_map, mesh=mesh, in_specs=(P(), P("data")), out_specs=P())
    def step(w, x):
        w = jax.lax.pcast(w, "data", to="varying")
        return jax.lax.psum(gradkin.per_example_grads(loss)(w, x).clip(1.0).sum(), "data")

    wanted = gradkin.per_example_grads(loss)(w, x).clip(1.0).sum()
    np.testing.assert_allclose(step(w, x), wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_adds_up_in_float32(dtype):
    """Parameters come back in their own type; inner products are float32."""
    w, x = normal(0, 32, 16).astype(dtype), normal(1, 3, 2, 32).astype(dtype)
    G = gradkin.per_example_grads(loss, route="factors")(w, x)
    assert G.dtype == dtype
    assert G.sum().dtype == G.materialize().dtype == G.mean().dtype == dtype
    assert G.norms().dtype == G.gram().dtype == (G @ w).dtype == np.float32
    wide = jax.tree.map(lambda a: a.astype(jnp.float32), (w, x))
    factors = [np.asarray(G.table[i], np.float32) for i in range(2)]
    assert {f.shape for f in factors} == {(3, 2, 32), (3, 2, 16)}
    a, d = sorted(factors, key=lambda f: -f.shape[-1])
    rows = np.einsum("bti,bto->bio", a, d).reshape(3, -1)
    np.testing.assert_allclose(G.gram(), rows @ rows.T, rtol=1e-5, atol=1e-3)
    exact = gradkin.per_example_grads(loss)(*wide)
    np.testing.assert_allclose(G.norms(), exact.norms(), rtol=5e-2)


def test_tiny_and_huge_weights_do_not_underflow():
    G = gradkin.per_example_grads(loss)(normal(0, 5, 4), normal(1, 3, 5))
    norms = np.asarray(G.norms(), np.float64)
    np.testing.assert_allclose(G.scale(1e-30).norms(), 1e-30 * norms, rtol=1e-5)
    np.testing.assert_allclose(G.scale(1e30).norms(), 1e30 * norms, rtol=1e-5)
    np.testing.assert_allclose(G.scale(1e-30).normalize().norms(), np.ones(3), rtol=1e-5)
    np.testing.assert_allclose(G.scale(1e30).clip(1.0).norms(), np.ones(3), rtol=1e-5)


def test_uses_that_cancel():
    """Two uses whose gradients cancel: rounding must not make a square negative."""

    def difference(w, x):
        return jnp.sum(jnp.sin(x @ w)) - jnp.sum(jnp.sin(x[::-1] @ w))

    model = Model(difference, (normal(0, 12, 12), normal(1, 8, 2, 12)))
    G = oracle.matrix(model, route="factors")
    assert np.all(np.asarray(G.squared_norms()) >= 0)
    scale = np.linalg.norm(np.asarray(model.args[1])) ** 2
    assert np.all(np.asarray(G.norms()) <= 1e-3 * scale)
    assert np.isfinite(np.asarray(G.normalize().norms())).all()


def test_complex_parameters():
    """The inner product is the real one: what a step of gradient descent sees."""

    def energy(z, x):
        return jnp.sum(jnp.abs(z @ x) ** 2)

    z = jax.lax.complex(normal(0, 3, 4), normal(1, 3, 4))
    x = jax.lax.complex(normal(2, 5, 4), normal(3, 5, 4))
    G = gradkin.per_example_grads(energy)(z, x)
    rows = np.asarray(jax.vmap(jax.grad(energy), (None, 0))(z, x)).reshape(5, -1)
    np.testing.assert_allclose(G.norms(), np.linalg.norm(rows, axis=1), rtol=1e-5)
    np.testing.assert_allclose(G.gram(), np.real(rows @ rows.conj().T), rtol=1e-4, atol=1e-2)
    centered = rows - rows.mean(0)
    np.testing.assert_allclose(G.centered().norms(), np.linalg.norm(centered, axis=1), rtol=1e-4)
