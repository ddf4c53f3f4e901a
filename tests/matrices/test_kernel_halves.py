"""Each pair of points compared once: the same numbers and derivatives as comparing all twice."""

import dataclasses
import functools
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradkin
from gradkin import kernels
from gradkin.matrices import kernel_halves, kernel_tiles
from gradkin.pytrees import register_dataclass

RNG = np.random.default_rng(6)
X = RNG.normal(size=(29, 5)).astype(np.float32)
V = RNG.normal(size=(29, 2)).astype(np.float32)
MASK = np.arange(29) % 6 != 1


def read(K, L, v):
    return {
        "product": K @ v,
        "rows": K.sum(1),
        "norm": K.frobenius_norm(),
        "inner": K.inner(L),
    }


def build(x, **options):
    return tuple(
        gradkin.kernel_matrix(kernel, x, **options)
        for kernel in (kernels.Gaussian(1.5), kernels.Euclidean())
    )


# Groups without and with a ragged end, and groups of one.
@pytest.mark.parametrize(
    ("size", "block", "masked"), [(27, 9, False), (29, 7, True), (11, 1, False)]
)
def test_equals_all_entries(size, block, masked):
    x, v, mask = X[:size], V[:size], MASK[:size]
    broken = np.where(mask[:, None], x, np.nan).astype(np.float32)
    if masked:
        K, L = (M.off_diagonal() for M in build(broken, block=block, mask=mask))
    else:
        K, L = build(x, block=block)
    assert kernel_halves.applies((K, L))
    R, S = (np.asarray(M.materialize(), float) for M in (K, L))
    found = jax.jit(read)(K, L, v)
    wanted = {
        "product": R @ v,
        "rows": R.sum(1),
        "norm": np.linalg.norm(R),
        "inner": (R * S).sum(),
    }
    for name in wanted:
        np.testing.assert_allclose(found[name], wanted[name], rtol=1e-4, atol=1e-5, err_msg=name)


def test_derivatives():
    def loss(x, h, v, block):
        K = gradkin.kernel_matrix(kernels.Exponential(h), x, block=block)
        return jnp.sum(jnp.sin(K @ v)) + K.frobenius_norm()

    derivative = jax.grad(loss, argnums=(0, 1, 2))
    halves, whole = jax.jit(lambda: tuple(derivative(X, 1.5, V, block) for block in (6, 29)))()
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), halves, whole)


@functools.partial(register_dataclass, data_fields=[], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class Counted:
    """A symmetric kernel that says how large its tiles were."""

    symmetric = True
    sizes: ClassVar[list[int]] = []

    def __call__(self, x, y):
        return jnp.exp(-jnp.sum(jnp.square(x - y)))

    def tile(self, x, y):
        tile = kernels.Gaussian().tile(x, y)
        if tile.size > 1:
            jax.debug.callback(lambda: self.sizes.append(tile.size))
        return tile


def test_half_the_entries():
    K = gradkin.kernel_matrix(Counted(), X, block=2)
    for read in (lambda: K.sum(), lambda: K @ V, lambda: K.sum(0), lambda: K.frobenius_norm()):
        Counted.sizes.clear()
        read()
        jax.effects_barrier()
        # 15 groups of 2: with itself and the 7 that follow.
        assert sum(Counted.sizes) == 15 * 2 * 2 * 8


@pytest.mark.parametrize(
    "make",
    [
        lambda: gradkin.kernel_matrix(kernels.Tversky(0.1, 0.9), X, block=5),
        lambda: gradkin.kernel_matrix(lambda x, y: x[0] * jnp.vdot(x, y), X, block=5),
        lambda: gradkin.kernel_matrix(kernels.Gaussian(), X, weights=V[:, 0], block=5),
        lambda: gradkin.kernel_matrix(kernels.Gaussian(), X, X, block=5),
        lambda: gradkin.kernel_matrix(kernels.Gaussian(), X, block=29),
    ],
    ids=["asymmetric", "unknown", "weighted", "two sides", "one panel"],
)
def test_only_where_it_is_known_to_be_right(make):
    K = make()
    assert not kernel_halves.applies((K,))
    R = np.asarray(K.materialize(), float)
    np.testing.assert_allclose(K @ V, R @ V, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(K.sum(), R.sum(), rtol=1e-4, atol=1e-3)


def test_layout_of_panels():
    """No panel is larger than asked for, and an even cut is preferred."""
    for rows, block in ((100, 30), (97, 30), (8, 3), (1000, 8)):
        count, size = kernel_tiles.layout(rows, block)
        assert count * size >= rows
        assert size <= block
    assert kernel_tiles.layout(100, 30) == (4, 25)
