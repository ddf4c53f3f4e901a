"""A matrix is an immutable pytree: it passes through transformations and never traces twice."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradkin
from tests.matrices import oracle
from tests.matrices.models import attention, dense

states = pytest.mark.parametrize("batch_size", [None, 2], ids=["recorded", "streamed"])


def make(batch_size=None):
    model = dense.mlp(batch=4)
    return model, gradkin.per_example_grads(model.loss, batch_size=batch_size)


def mean_of(tree):
    return np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)])


@states
def test_two_traces_have_equal_structures(batch_size):
    model, transform = make(batch_size)
    first, second = (jax.eval_shape(transform, *model.args) for _ in range(2))
    assert jax.tree.structure(first) == jax.tree.structure(second)
    assert hash(jax.tree.structure(first)) == hash(jax.tree.structure(second))


def test_structures_do_not_depend_on_the_batch():
    model = attention.transformer(scan=True, tied=True)
    transform = gradkin.per_example_grads(model.loss)
    shift = jax.tree.map(lambda x: (x + 1) % 7, model.args[1])
    first = jax.eval_shape(transform, *model.args)
    second = jax.eval_shape(transform, model.args[0], shift)
    assert jax.tree.structure(first) == jax.tree.structure(second)


def test_static_part_holds_no_arrays():
    model, transform = make()
    G = transform(*model.args)
    assert all(isinstance(x, jax.Array) for x in jax.tree.leaves(G))
    hash(G.leaves)
    with pytest.raises(dataclasses.FrozenInstanceError):
        G.weights = None


@states
def test_leaves_a_jit_and_enters_another(batch_size):
    model, transform = make(batch_size)
    inside = jax.jit(lambda *args: transform(*args).clip(0.5).mean())(*model.args)
    G = jax.jit(transform)(*model.args)
    outside = jax.jit(lambda G: G.clip(0.5).mean())(G)
    clipped = jax.jit(lambda G: G.clip(0.5))(G)  # a jit may also return a matrix
    for other in (outside, clipped.mean(), transform(*model.args).clip(0.5).mean()):
        np.testing.assert_allclose(mean_of(other), mean_of(inside), rtol=1e-5, atol=1e-7)


@states
def test_passes_through_cond(batch_size):
    model, transform = make(batch_size)

    @jax.jit
    def norms(flag, *args):
        G = transform(*args)
        mask = jnp.asarray([True, False, True, True])
        return jax.lax.cond(flag, lambda G: G.where(mask), lambda G: G.where(~mask), G).norms()

    wanted = np.asarray(transform(*model.args).norms())
    np.testing.assert_allclose(norms(True, *model.args), wanted * [1, 0, 1, 1], rtol=1e-5)
    np.testing.assert_allclose(norms(False, *model.args), wanted * [0, 1, 0, 0], rtol=1e-5)


def test_is_chosen_by_cond_and_carried_by_scan():
    model, transform = make()

    @jax.jit
    def run(*args):
        G = transform(*args)
        start = G.scale(jnp.ones(4))

        def step(carry, factor):
            carry = carry.scale(factor)
            return carry, carry.norms()

        last, norms = jax.lax.scan(step, start, jnp.asarray([2.0, 0.5, 3.0]))
        return last, norms

    last, norms = run(*model.args)
    wanted = np.asarray(transform(*model.args).norms())
    np.testing.assert_allclose(norms, np.outer([2.0, 1.0, 3.0], wanted), rtol=1e-5)
    np.testing.assert_allclose(last.norms(), 3 * wanted, rtol=1e-5)


def test_training_in_a_scan():
    """Private training as users write it: one jit, the matrix made anew in every step."""
    model, transform = make()

    def step(params, _):
        mean = transform(params, *model.args[1:]).clip(0.5).mean()
        return jax.tree.map(lambda p, g: p - 0.1 * g, params, mean), None

    def slow(params):
        rows = oracle.rows(model._replace(args=(params, *model.args[1:])))
        flat = jnp.concatenate([x.reshape(4, -1) for x in jax.tree.leaves(rows)], axis=1)
        factor = jnp.minimum(1, 0.5 / jnp.linalg.norm(flat, axis=1))
        return jax.tree.map(lambda p, g: p - 0.1 * jnp.tensordot(factor, g, 1) / 4, params, rows)

    fast, _ = jax.jit(lambda p: jax.lax.scan(step, p, length=3))(model.args[0])
    compiled, wanted = jax.jit(slow), model.args[0]
    for _ in range(3):
        wanted = compiled(wanted)
    np.testing.assert_allclose(mean_of(fast), mean_of(wanted), rtol=1e-4, atol=1e-6)


@states
def test_traces_once(batch_size):
    traces = []
    model = dense.mlp(batch=4)

    def loss(params, example):
        traces.append(1)
        return model.loss(params, example)

    transform = gradkin.per_example_grads(loss, batch_size=batch_size)

    @jax.jit
    def step(*args):
        return transform(*args).clip(1.0).mean()

    step(*model.args)
    count = len(traces)
    step(*model.args)
    assert len(traces) == count

    G = transform(*model.args)
    G.norms()
    count = len(traces)
    G = transform(*model.args)
    G.norms()
    # Checking the arguments costs an abstract evaluation; the backward pass is not traced again.
    assert len(traces) <= count + 1


def test_under_vmap_over_parameters():
    """An ensemble: the whole read-off is mapped over seeds."""
    model, transform = make()
    params = jax.tree.map(lambda p: jnp.stack([p, 2 * p, -p]), model.args[0])
    mapped = jax.jit(jax.vmap(lambda p: transform(p, model.args[1]).clip(1.0).norms()))(params)
    for i, one in enumerate(mapped):
        member = jax.tree.map(lambda p, i=i: p[i], params)
        np.testing.assert_allclose(
            one, transform(member, model.args[1]).clip(1.0).norms(), rtol=1e-5
        )


def test_vmap_over_a_matrix_of_matrices():
    """A recorded matrix that leaves a vmap has a leading axis on every child."""
    model, transform = make()
    scales = jnp.asarray([1.0, 2.0])

    def made(scale):
        return transform(jax.tree.map(lambda p: p * scale, model.args[0]), model.args[1])

    stacked = jax.jit(jax.vmap(made))(scales)
    norms = jax.vmap(lambda G: G.norms())(stacked)
    np.testing.assert_allclose(norms[1], made(scales[1]).norms(), rtol=1e-5)


def test_donation_and_device_put_keep_the_rows():
    model, transform = make()
    G = transform(*model.args)
    moved = jax.device_put(G, jax.devices()[1])
    np.testing.assert_allclose(moved.norms(), G.norms(), rtol=1e-6)
    assert next(iter(moved.norms().devices())) == jax.devices()[1]


def test_losses_and_auxiliary_values():
    model = dense.mlp(batch=4)

    def loss(params, example):
        value = model.loss(params, example)
        return value, {"twice": 2 * value, "x": example[0]}

    wanted = jax.vmap(lambda e: model.loss(model.args[0], e))(model.args[1])
    for batch_size in (None, 3):
        options = {"has_aux": True, "batch_size": batch_size}
        G, aux = gradkin.per_example_grads(loss, **options)(*model.args)
        (losses, same), H = gradkin.value_and_per_example_grads(loss, **options)(*model.args)
        np.testing.assert_allclose(losses, wanted, rtol=1e-6)
        np.testing.assert_allclose(aux["twice"], 2 * wanted, rtol=1e-6)
        np.testing.assert_allclose(same["x"], model.args[1][0], rtol=1e-6)
        np.testing.assert_allclose(H.losses, wanted, rtol=1e-6)
        np.testing.assert_allclose(G.norms(), H.norms(), rtol=1e-6)


def test_a_callable_that_cannot_be_hashed():
    model = dense.mlp(batch=4)

    @dataclasses.dataclass
    class Loss:
        scale: float

        def __call__(self, params, example):
            return self.scale * model.loss(params, example)

    G = gradkin.per_example_grads(Loss(2.0))(*model.args)
    np.testing.assert_allclose(G.norms(), 2 * oracle.matrix(model).norms(), rtol=1e-5)


def test_names_of_the_leaves():
    def loss(params, x):
        return sum(jnp.sum(p * x) for p in jax.tree.leaves(params))

    one = jnp.ones(2)
    G = gradkin.per_example_grads(loss)({"a": [one, (one,)], "b": one}, jnp.ones((3, 2)))
    assert list(G.by_leaf()) == ["a/0", "a/1/0", "b"]
    assert list(gradkin.per_example_grads(loss)(one, jnp.ones((3, 2))).by_leaf()) == ["."]
