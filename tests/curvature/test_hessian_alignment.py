"""Moments of a linear head against automatic differentiation; penalties between domains."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import gradkin
from gradkin import curvature
from tests.matrices.models.model import integers, normal, plus

N, D, K = 16, 3, 4
Z, HEAD, LABELS = normal(0, N, D), normal(1, K, D + 1), integers(2, K, N)
VECTOR = normal(3, K, D + 1)


def logits_of(head, z):
    return z @ head[:, :-1].T + head[:, -1]


def example_loss(head, z, label):
    return curvature.cross_entropy(logits_of(head, z), label)


def logits(z, head=HEAD):
    return plus(z @ head[:, :-1].T, head[:, -1])


def moments(z=Z, head=HEAD, labels=LABELS):
    return curvature.head_moments(z, logits(z, head), labels)


def domains(number=3):
    """Domains of different sizes that share a head."""
    return [
        moments(normal(10 + i, 5 + i, D), labels=integers(20 + i, K, 5 + i)) for i in range(number)
    ]


PENALTIES = {
    "hgp": curvature.hgp_penalty,
    "hgp mean": functools.partial(curvature.hgp_penalty, center="mean"),
    "hutchinson": functools.partial(curvature.hutchinson_penalty, None),
    "vrex": curvature.vrex_penalty,
    "iga": curvature.iga_penalty,
    "fishr": curvature.fishr_penalty,
    "coral": curvature.coral_penalty,
}


@jax.jit
def everything(z, head, labels):
    domain = moments(z, head, labels)
    H = domain.hessian
    return domain._replace(hessian=H.materialize()), H.diagonal(), H @ VECTOR, VECTOR @ H


def test_closed_forms_are_the_derivatives():
    domain, diagonal, product, from_left = everything(Z, HEAD, LABELS)
    H = gradkin.hessian(example_loss)(HEAD, Z, LABELS)
    G = gradkin.per_example_grads(example_loss)(HEAD, Z, LABELS)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
    close(domain.grad, G.mean())
    close(domain.hessian, H.materialize())
    close(product, H @ VECTOR)
    close(from_left, product)
    close(diagonal.ravel(), jnp.diagonal(domain.hessian))
    close(domain.grad_variance, variance(G))
    mean_loss = lambda scale: jnp.mean(jax.vmap(curvature.cross_entropy)(scale * logits(Z), LABELS))
    value, slope = jax.value_and_grad(mean_loss)(1.0)
    close(domain.loss, value)
    close(domain.scale_grad, slope)


def variance(G):
    return np.var(np.asarray(G.materialize()), axis=0)


@pytest.mark.parametrize(("shift", "target_shift"), [(100.0, 0.0), (0.0, 100.0), (100.0, -50.0)])
def test_variance_far_from_zero(shift, target_shift):
    z = shift + 0.1 * Z
    targets = target_shift + 0.1 * normal(6, N, K)
    outputs = 0.1 * normal(7, N, K)
    found = jax.jit(functools.partial(curvature.head_moments, output_loss=curvature.squared_error))(
        z, outputs, targets
    )
    wide = lambda x: np.asarray(x, np.float64)
    residuals, features = wide(outputs) - wide(targets), np.c_[wide(z), np.ones(N)]
    wanted = np.var(residuals[:, :, None] * features[:, None], axis=0)
    np.testing.assert_allclose(found.grad_variance, wanted, rtol=1e-3)
    # Equal logits and labels have one residual: the variance is that of the features.
    same = curvature.head_moments(z, jnp.zeros((N, K)), jnp.zeros(N, int), bias=False)
    wanted = (np.eye(K)[0] - 1 / K)[:, None] ** 2 * np.var(wide(z), axis=0)
    np.testing.assert_allclose(same.grad_variance, wanted, rtol=1e-3)


def test_derivative_of_the_variance():
    """The constants that it is written down with do not show."""
    weights, z = normal(8, K, D + 1), 3 + Z

    def ours(z):
        return jnp.sum(weights * moments(z).grad_variance)

    def written_out(z):
        residuals = jax.nn.softmax(logits(z)) - jax.nn.one_hot(LABELS, K)
        ones = jnp.concatenate([z, jnp.ones((N, 1))], axis=1)
        return jnp.sum(weights * jnp.var(residuals[:, :, None] * ones[:, None], axis=0))

    found, wanted = jax.jit(lambda z: (jax.grad(ours)(z), jax.grad(written_out)(z)))(z)
    np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-4)


def test_logistic_head_without_bias():
    """H = E[p (1 - p) z z^T]."""
    w, y = normal(4, 1, D), integers(5, 2, N).astype(jnp.float32)[:, None]
    outputs = Z @ w.T
    domain = curvature.head_moments(
        Z, outputs, y, output_loss=curvature.binary_cross_entropy, bias=False
    )
    p = np.asarray(jax.nn.sigmoid(outputs))
    z = np.asarray(Z)
    np.testing.assert_allclose(domain.grad, (p - np.asarray(y)).T @ z / N, rtol=1e-4, atol=1e-6)
    wanted = (z * p * (1 - p)).T @ z / N
    np.testing.assert_allclose(domain.hessian.materialize(), wanted, rtol=1e-4, atol=1e-6)
    assert domain.hessian.shape == (D, D)


def test_gradient_of_the_norm_is_the_product_in_float64():
    """``|g| grad |g| = H g``, what HGP is named after."""
    with jax.enable_x64(True):
        z, head = (jnp.asarray(x, jnp.float64) for x in (Z, HEAD))

        def norm(head):
            return jnp.linalg.norm(moments(z, head).grad)

        domain = moments(z, head)
        assert domain.grad.dtype == np.float64
        wanted = norm(head) * jax.grad(norm)(head)
        np.testing.assert_allclose(domain.hessian @ domain.grad, wanted, atol=1e-10)


def test_a_constant_on_all_logits_changes_nothing():
    shift = 3 * jnp.ones((N, K))
    one = curvature.head_moments(Z, logits(Z), LABELS)
    other = curvature.head_moments(Z, logits(Z) + shift, LABELS)
    for field in ("loss", "grad", "grad_variance", "scale_grad"):
        np.testing.assert_allclose(getattr(other, field), getattr(one, field), atol=1e-5)
    np.testing.assert_allclose(other.hessian @ VECTOR, one.hessian @ VECTOR, atol=1e-5)
    same = jnp.broadcast_to(VECTOR[:1], VECTOR.shape)
    np.testing.assert_allclose(one.hessian @ same, 0, atol=1e-6)


def test_verbs_of_curvature_take_the_head():
    H, key = moments().hessian, jax.random.key(0)
    dense = np.asarray(H.materialize())
    top = curvature.top_eigenpairs(key, H)
    np.testing.assert_allclose(top.values[0], np.linalg.eigvalsh(dense)[-1], rtol=1e-4)
    assert top.vectors.shape == (1, K, D + 1)
    assert H.T is H
    assert "16, 16" in repr(H)


@functools.cache
def compared():
    """Every penalty of three domains, in the other order, of one, and of equal ones."""

    @jax.jit
    def values(head):
        seen = domains()
        same = lambda penalty: jax.value_and_grad(lambda h: penalty([moments(Z, h)] * 2))(head)
        return {
            name: (penalty(seen), penalty(seen[::-1]), penalty(seen[:1]), *same(penalty))
            for name, penalty in PENALTIES.items()
        }

    return values(HEAD)


@pytest.mark.parametrize("name", PENALTIES)
def test_penalties_compare_domains(name):
    value, reverse, single, same, slope = compared()[name]
    assert value > 1e-6
    np.testing.assert_allclose(reverse, value, rtol=1e-4)
    np.testing.assert_allclose(single, 0, atol=1e-9)
    np.testing.assert_allclose(same, 0, atol=1e-9)
    np.testing.assert_allclose(slope, 0, atol=1e-6)
    with pytest.raises(ValueError, match="at least one domain"):
        PENALTIES[name]([])


def test_definitions_of_the_penalties():
    seen = domains()
    g = np.stack([d.grad.ravel() for d in seen])
    H = np.stack([d.hessian.materialize() for d in seen])
    spread = lambda x: np.mean(np.sum(np.square(x - x.mean(0)), axis=1))
    products = np.einsum("epq,eq->ep", H, g)
    pooled = products - H.mean(0) @ g.mean(0)
    of_pooled = np.mean(np.sum(np.square(pooled), axis=1))
    diagonals = np.stack([np.diagonal(h) for h in H])
    options: dict[str, Any] = {"alpha": 0.5, "beta": 2.0}
    hutchinson = functools.partial(curvature.hutchinson_penalty, None)
    for found, wanted in (
        (curvature.hgp_penalty(seen, **options), 0.5 * spread(g) + 2 * of_pooled),
        (curvature.hgp_penalty(seen, alpha=0, center="mean"), spread(products)),
        (curvature.hgp_penalty(seen, beta=0), spread(g)),
        (curvature.hgp_penalty(seen, reduce="sum"), 3 * (spread(g) + of_pooled)),
        (hutchinson(seen, **options), 0.5 * spread(g) + 2 * spread(diagonals)),
        (hutchinson(seen, alpha=0, reduce="sum"), 3 * spread(diagonals)),
        (curvature.iga_penalty(seen), spread(g)),
        (curvature.fishr_penalty(seen), spread(np.stack([d.grad_variance.ravel() for d in seen]))),
        (curvature.irm_penalty(seen), np.mean([float(d.scale_grad) ** 2 for d in seen])),
        (curvature.vrex_penalty(seen), np.var([float(d.loss) for d in seen])),
    ):
        np.testing.assert_allclose(found, wanted, rtol=1e-4)
    covariances = [np.cov(np.asarray(d.features).T) for d in seen]
    pairs = [np.sum((covariances[i] - covariances[j]) ** 2) for i, j in ((0, 1), (0, 2), (1, 2))]
    np.testing.assert_allclose(
        curvature.coral_penalty(seen), np.mean(pairs) / (4 * D**2), rtol=1e-4
    )


def test_probes_estimate_the_diagonal(key):
    """Exact where the Hessian is diagonal; else unbiased up to the square of 1 / sqrt(R)."""
    zero = jnp.zeros(())
    diagonal = [
        curvature.HeadMoments(zero, jnp.zeros(2), jnp.diag(jnp.array([1.0, s]))) for s in (2.0, 6.0)
    ]
    found = curvature.hutchinson_penalty(key, diagonal, num_probes=2)
    np.testing.assert_allclose(found, 4, rtol=1e-6)  # 4 -+ 2
    exact = curvature.hutchinson_penalty(None, domains(), alpha=0)

    @functools.partial(jax.jit, static_argnames="num")
    def errors(key, num):
        estimate = lambda key: curvature.hutchinson_penalty(key, domains(), alpha=0, num_probes=num)
        return jax.lax.map(estimate, jax.random.split(key, 40)) - exact

    few, many = np.mean(errors(key, 16)), np.mean(errors(key, 256))
    assert 0 < many < few / 4, "the bias, a variance, falls as 1 / R"


def test_penalty_reaches_the_features(key):
    """Derivative in the layer below the head, against differences, in float64."""
    with jax.enable_x64(True):
        inputs = np.random.default_rng(0).normal(size=(2, 6, 2))
        below, head = np.random.default_rng(1).normal(size=(2, D)), np.asarray(HEAD, np.float64)
        labels = [integers(30 + i, K, 6) for i in range(2)]

        def penalty(below, which):
            z = [jnp.tanh(x @ below) for x in inputs]
            seen = [moments(a, jnp.asarray(head), y) for a, y in zip(z, labels)]
            return PENALTIES[which](seen)

        direction = np.random.default_rng(2).normal(size=below.shape)
        for which in ("hgp", "hutchinson"):
            value = jax.jit(functools.partial(penalty, which=which))
            slope = np.sum(np.asarray(jax.grad(value)(below)) * direction)
            ahead, behind = (value(below + s * 1e-5 * direction) for s in (1, -1))
            np.testing.assert_allclose(slope, (ahead - behind) / 2e-5, rtol=1e-6)


def test_any_head_by_its_own_hessian(key):
    """A lazy Hessian of any loss gives the same penalties, and the gradient of HGP."""
    batches = [(normal(40 + i, 6, D), integers(50 + i, K, 6)) for i in range(2)]

    def lazy(head):
        mean = lambda head, z, y: jnp.mean(jax.vmap(example_loss, (None, 0, 0))(head, z, y))
        return [
            curvature.HeadMoments(
                *jax.value_and_grad(mean)(head, *batch),
                gradkin.hessian(example_loss)(head, *batch),
            )
            for batch in batches
        ]

    def closed(head):
        return [moments(z, head, y) for z, y in batches]

    @jax.jit
    def both(head):
        penalties = [lambda h, f=f: curvature.hgp_penalty(f(h)) for f in (lazy, closed)]
        return [jax.value_and_grad(penalty)(head) for penalty in penalties]

    (value, slope), (wanted, wanted_slope) = both(HEAD)
    np.testing.assert_allclose(value, wanted, rtol=1e-4)
    np.testing.assert_allclose(slope, wanted_slope, rtol=1e-3, atol=1e-6)
    probes = [curvature.hutchinson_penalty(key, f(HEAD), num_probes=4) for f in (lazy, closed)]
    np.testing.assert_allclose(*probes, rtol=1e-4)
    with pytest.raises(TypeError, match="num_probes.*CurvatureMatrix"):
        curvature.hutchinson_penalty(None, lazy(HEAD))
    with pytest.raises(ValueError, match="scale_grad in every domain"):
        curvature.irm_penalty(lazy(HEAD))


def test_sharded_and_short_floats(mesh):
    split = jax.device_put((Z, LABELS), NamedSharding(mesh, PartitionSpec("data")))
    found = everything(split[0], HEAD, split[1])
    wanted = everything(Z, HEAD, LABELS)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), found, wanted)
    short = curvature.head_moments(Z.astype(jnp.bfloat16), logits(Z).astype(jnp.bfloat16), LABELS)
    assert short.grad.dtype == short.hessian.dtype == np.float32
    np.testing.assert_allclose(short.grad, wanted[0].grad, atol=0.02)


def test_vmap_over_heads():
    heads = jnp.stack([HEAD, 2 * HEAD])
    penalty = lambda head: curvature.hgp_penalty([moments(Z, head), moments(-Z, head)])
    batched, single = jax.jit(lambda heads: (jax.vmap(penalty)(heads), penalty(heads[1])))(heads)
    np.testing.assert_allclose(batched[1], single, rtol=1e-5)


def test_bound_is_reached_along_the_top_eigenvector(key):
    """Second-order part of the gap between two domains' losses, on and off that direction."""
    seen, radius = domains(2), 1e-2
    bound = curvature.transfer_gap_bound(key, seen[0].hessian, seen[1].hessian, radius=radius)
    difference = np.asarray(seen[0].hessian.materialize() - seen[1].hessian.materialize())
    norm = np.linalg.norm(difference, 2)
    np.testing.assert_allclose(bound, radius**2 / 2 * norm, rtol=1e-4)
    with jax.enable_x64(True):
        values, vectors = np.linalg.eigh(difference.astype(np.float64))
        steps = np.stack([vectors[:, np.argmax(np.abs(values))], vectors[:, 0] * 0 + 0.25])

        @jax.jit
        def gap(u):
            losses = []
            for i in range(2):
                z = jnp.asarray(normal(10 + i, 5 + i, D), jnp.float64)
                head = jnp.asarray(HEAD, jnp.float64)
                loss = lambda head, z=z, i=i: moments(z, head, integers(20 + i, K, 5 + i)).loss
                losses.append(
                    loss(head + u.reshape(head.shape))
                    - loss(head)
                    - jnp.vdot(jax.grad(loss)(head).ravel(), u)
                )
            return abs(losses[0] - losses[1])

        along, off = (float(gap(radius * u)) for u in steps)
    np.testing.assert_allclose(along, bound, rtol=0.05)
    assert off < float(bound)


def test_annealing():
    at = functools.partial(curvature.annealed_loss, 2.0, 3.0, anneal_steps=5)
    assert float(at(step=4, weight=10.0)) == 5.0
    np.testing.assert_allclose(at(step=5, weight=10.0), 3.2, rtol=1e-6)
    np.testing.assert_allclose(at(step=5, weight=0.5), 3.5, rtol=1e-6)
    traced = jax.jit(lambda step: at(step=step, weight=10.0))
    np.testing.assert_allclose(traced(jnp.asarray(5)), 3.2, rtol=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: curvature.head_moments(Z[:0], Z[:0], LABELS[:0]), "at least one"),
        (lambda: curvature.head_moments(Z, logits(Z), LABELS[1:]), "same examples"),
        (lambda: curvature.head_moments(Z, LABELS, LABELS), "logits to have 2 axes"),
        (lambda: moments().hessian @ VECTOR[:, 1:], "the vector"),
        (lambda: curvature.hgp_penalty([moments(), other_head()]), "domain 1's grad"),
        (lambda: curvature.hgp_penalty(domains(), alpha=-1.0), "alpha >= 0"),
        (lambda: curvature.hgp_penalty(domains(), center="median"), "center"),
        (lambda: curvature.hgp_penalty(domains(), reduce="max"), "reduce"),
        (lambda: curvature.hutchinson_penalty(None, domains(), beta=-1.0), "beta >= 0"),
        (lambda: curvature.hutchinson_penalty(None, domains(), num_probes=4), "a key"),
        (
            lambda: curvature.hutchinson_penalty(jax.random.key(0), domains(), num_probes=0),
            "num_matvecs >= 2",
        ),
        (lambda: curvature.coral_penalty([moments(Z[:1], labels=LABELS[:1])]), "2 examples"),
        (lambda: curvature.annealed_loss(1.0, 1.0, step=0, weight=-1.0, anneal_steps=1), "weight"),
        (lambda: bound_of(jnp.eye(3)), "of one size"),
        (lambda: bound_of(jnp.eye(2), radius=-1.0), "radius >= 0"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def other_head():
    return curvature.head_moments(Z, logits(Z)[:, 1:], jnp.zeros(N, jnp.int32))


def bound_of(other, *, radius=1.0):
    return curvature.transfer_gap_bound(jax.random.key(0), jnp.eye(2), other, radius=radius)
