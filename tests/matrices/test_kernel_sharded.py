"""Rows on eight devices: the numbers of one, and no more talk between them than promised."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import gradkin
from gradkin import kernels

RNG = np.random.default_rng(5)
X = RNG.normal(size=(32, 6)).astype(np.float32)
Y = RNG.normal(size=(16, 6)).astype(np.float32)
W = RNG.uniform(0.5, 2, size=16).astype(np.float32)
MASKS = np.arange(32) % 5 != 0, np.arange(16) % 3 != 0
V, U = RNG.normal(size=(16, 2)).astype(np.float32), RNG.normal(size=32).astype(np.float32)
OPTIONS = pytest.mark.parametrize("ring", [False, True], ids=["replicated", "ring"])


def read(K, S, L):
    return {
        "right": K @ V,
        "left": U @ K,
        "sum": K.sum(),
        "rows": K.sum(1),
        "log columns": K.logsumexp(0),
        "log rows": K.logsumexp(1),
        "max": K.max(0),
        "top": tuple(best[MASKS[0]] for best in K.top_k(3)),
        "entries": K.materialize(),
        "inner": S.inner(L),
        "centered": S.centered_sums(L),
    }


def build(x, y, w, **options):
    return (
        gradkin.kernel_matrix(
            kernels.Gaussian(1.5), x, y, weights=w, mask=MASKS, block=2, **options
        ),
        gradkin.kernel_matrix(kernels.Euclidean(), x, **options),
        gradkin.kernel_matrix(kernels.Cauchy(), x[:, :2], **options),
    )


def close(a, b):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), a, b)


@pytest.fixture(scope="module")
def one():
    """The numbers and the gradients of one device."""
    return (
        jax.jit(lambda *a: read(*build(*a)))(X, Y, W),
        jax.jit(jax.grad(loss, argnums=(0, 1, 2)))(X, Y, W),
    )


@OPTIONS
def test_equals_one_device(mesh, one, ring):
    rows = jax.device_put(X, NamedSharding(mesh, P("data")))
    spread = jax.jit(lambda *a: read(*build(*a, mesh=mesh, ring=ring)))(rows, Y, W)
    close(spread, one[0])
    assert len(spread["rows"].sharding.device_set) == 8
    assert not spread["rows"].sharding.is_fully_replicated


def loss(x, y, w, **options):
    K, _, _ = build(x, y, w, **options)
    return jnp.sum(jnp.sin(K @ V)) + jnp.sum(K.logsumexp(0))


@OPTIONS
def test_gradients_equal_those_of_one_device(mesh, one, ring):
    spread = jax.jit(jax.grad(lambda *a: loss(*a, mesh=mesh, ring=ring), argnums=(0, 1, 2)))
    close(spread(X, Y, W), one[1])


def test_sharded_points_say_it_themselves(mesh):
    """Concrete points that lie on a mesh need no argument; nor does the compiler without one."""
    rows = jax.device_put(X, NamedSharding(mesh, P("data")))
    K = gradkin.kernel_matrix(kernels.Gaussian(1.5), rows, Y)
    assert K.placement is not None
    assert K.explain().devices == 8
    assert "on each of 8 devices" in str(K.explain())
    single = gradkin.kernel_matrix(kernels.Gaussian(1.5), X, Y)
    assert single.placement is None
    np.testing.assert_allclose(K.sum(1), single.sum(1), rtol=1e-5)
    left_to_the_compiler = jax.jit(
        lambda x: gradkin.kernel_matrix(kernels.Gaussian(1.5), x, Y, block=8).sum(0)
    )(rows)
    np.testing.assert_allclose(left_to_the_compiler, single.sum(0), rtol=1e-5)


def compiled(fun, mesh, ring):
    """The program for points that are sharded, columns too if they go round."""
    x = jax.ShapeDtypeStruct((64, 6), np.float32, sharding=NamedSharding(mesh, P("data")))
    columns = P("data") if ring else P()
    y = jax.ShapeDtypeStruct((128, 6), np.float32, sharding=NamedSharding(mesh, columns))

    def step(x, y):
        K = gradkin.kernel_matrix(kernels.Gaussian(1.5), x, y, block=2, mesh=mesh, ring=ring)
        return fun(K)

    return jax.jit(step).lower(x, y).compile().as_text() or ""


def count(text, name):
    return text.count(f" {name}(") + text.count(f" {name}-start(")


@OPTIONS
def test_one_collective_at_the_end(mesh, ring):
    """A total is one all-reduce; rows need none; nobody collects all points of a ring."""
    total = compiled(lambda K: K.sum(), mesh, ring)
    assert count(total, "all-reduce") == 1
    rows = compiled(lambda K: K.logsumexp(1), mesh, ring)
    assert count(rows, "all-reduce") == 0
    columns = compiled(lambda K: K.sum(0), mesh, ring)
    assert count(columns, "all-reduce") == (0 if ring else 1)
    for text in (total, rows, columns):
        assert count(text, "all-gather") == 0
        assert count(text, "all-to-all") == 0
        assert (count(text, "collective-permute") > 0) == ring


def test_centered_sums_round_a_ring(mesh):
    """Also of more points than the single pass takes as anchors, in no multiple of them."""
    x = jax.random.normal(jax.random.key(0), (72, 3))
    ring = gradkin.kernel_matrix(kernels.Gaussian(1.0), x, mesh=mesh, ring=True).centered_sums()
    one = gradkin.kernel_matrix(kernels.Gaussian(1.0), x).centered_sums()
    np.testing.assert_allclose(ring.kk, one.kk, rtol=1e-5)


def test_explicit_axes():
    with pytest.raises(ValueError, match=r"a mesh of automatic axes, got \['d'\]"):
        gradkin.kernel_matrix(
            kernels.Gaussian(1.0), jnp.ones((8, 2)), mesh=jax.make_mesh((8,), "d")
        )


def test_points_that_do_not_divide(mesh):
    with pytest.raises(ValueError, match="x to be a multiple of the 8 devices, got 31"):
        gradkin.kernel_matrix(kernels.Gaussian(), X[:31], mesh=mesh)
    with pytest.raises(ValueError, match="y to be a multiple of the 8 devices, got 15"):
        gradkin.kernel_matrix(kernels.Gaussian(), X, Y[:15], mesh=mesh, ring=True)
    gradkin.kernel_matrix(kernels.Gaussian(), X, Y[:15], mesh=mesh)
