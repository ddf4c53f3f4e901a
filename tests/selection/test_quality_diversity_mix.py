"""QuaDMix: the formula, its limits, ranks by their definition, sharded arrays, bad input."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from gradkin import selection

rank_of = jax.jit(selection.domain_rank, static_argnames="higher_is_better")
value_of = jax.jit(selection.sampling_value)
normalize = jax.jit(selection.normalize_scores, static_argnames="norm")
mixture_of = jax.jit(selection.expected_mixture, static_argnums=2)
merge = jax.jit(selection.merge_quality, static_argnames="norm")
draw = jax.jit(
    lambda keys, prior: jax.vmap(lambda k: selection.sample_mix_params(k, 3, 2, prior=prior))(keys),
    static_argnums=1,
)
DOMAIN = np.repeat(np.arange(3), [4, 9, 27]).astype(np.int32)


def params(**changes):
    """Of three domains and two criteria."""
    whole: dict[str, Any] = {
        "lam": [5.0] * 3,
        "omega": [0.4] * 3,
        "eta": [1.5] * 3,
        "eps": [0.01] * 3,
    }
    whole["alpha"] = [[0.5, 0.5]] * 3
    whole |= {
        name: [value] * 3 if np.ndim(value) == 0 else value for name, value in changes.items()
    }
    leaves: Any = [np.asarray(whole[name], np.float32) for name in selection.MixParams._fields]
    return selection.MixParams(*leaves)


def ranks(size=40):
    """As many ranks as documents, among them the cut of `params`."""
    found = np.linspace(0, 1, size, dtype=np.float32)
    found[7] = 0.4
    return found


def test_sampling_value_is_the_formula():
    mixed = params(lam=[0.5, 20, 900], omega=[0.4, 0.1, 1], eta=[0, 1, 2.5], eps=[0, 0.1, 0.02])
    r = ranks()
    lam, omega, eta, eps = (np.asarray(leaf, np.float64)[DOMAIN] for leaf in mixed[1:])
    inside = r <= np.asarray(mixed.omega)[DOMAIN]
    with np.errstate(over="ignore"):
        expected = np.where(inside, (2 / (1 + np.exp(-lam * (omega - r)))) ** eta, 0) + eps
    np.testing.assert_allclose(value_of(r, DOMAIN, mixed), expected, rtol=3e-6)


def test_sampling_value_at_its_limits():
    r, inside = ranks(), ranks() <= np.float32(0.4)
    np.testing.assert_array_equal(
        value_of(r, DOMAIN, params(lam=0)), np.where(inside, np.float32(1.01), np.float32(0.01))
    )
    np.testing.assert_array_equal(value_of(r, DOMAIN, params(eta=0, eps=0)), inside)
    np.testing.assert_array_equal(value_of(r, DOMAIN, params(eta=0, eps=0, omega=1)), 1)
    best = selection.quality_filter_params(np.full(3, np.float32(0.4)))
    np.testing.assert_array_equal(value_of(r, DOMAIN, best), inside)


def test_sampling_value_falls_with_the_rank_by_one_at_the_cut():
    grid, one = np.linspace(1e-4, 1, 4001, dtype=np.float32), np.zeros(4003, np.int32)
    for lam, eta, omega in ((0.0, 2.0, 0.3), (8.0, 0.5, 0.3), (1000.0, 3.0, 1.0), (2.0, 0.0, 0.05)):
        cut = np.float32(omega)
        sides = np.array([cut, np.nextafter(cut, np.float32(2))])
        chosen = params(lam=lam, eta=eta, omega=omega, eps=0.0)
        found = np.asarray(value_of(np.concatenate([grid, sides]), one, chosen))
        assert np.all(np.diff(found[:-2]) <= 1e-6)
        bound = (2 / (1 + np.exp(-lam * omega))) ** eta
        assert found.max() <= bound * (1 + 1e-6)
        np.testing.assert_allclose(found[-2:], [1, 0], atol=1e-4)


def test_sampling_value_has_finite_derivatives():
    def total(lam, omega):
        chosen = params()._replace(lam=lam, omega=omega)
        return jnp.sum(selection.sampling_value(ranks(), DOMAIN, chosen))

    steep, cut = np.full(3, 1e3, np.float32), np.full(3, 0.4, np.float32)
    grads = jax.jit(jax.grad(total, (0, 1)))(steep, cut)
    assert all(np.all(np.isfinite(g)) for g in grads)


def test_ranks_are_as_defined():
    rng = np.random.default_rng(0)
    domain = rng.permutation(DOMAIN)
    quality = rng.integers(0, 12, len(domain)).astype(np.float32)  # with ties
    tokens = rng.integers(1, 50, len(domain)).astype(np.int32)
    same = domain[:, None] == domain[None]
    for higher, lengths in ((True, None), (False, None), (True, tokens)):
        badness = -quality if higher else quality
        no_worse = same & (badness[None] <= badness[:, None])
        weights = np.ones_like(tokens) if lengths is None else tokens
        expected = (no_worse @ weights) / (same @ weights)
        found = rank_of(quality, domain, tokens=lengths, higher_is_better=higher)
        np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_ranks_without_ties():
    rng = np.random.default_rng(1)
    quality = rng.normal(size=40).astype(np.float32)
    found = np.asarray(rank_of(quality, DOMAIN))
    for m, size in enumerate((4, 9, 27)):
        here = np.equal(DOMAIN, m)
        own = found[here]
        np.testing.assert_allclose(own.mean(), (size + 1) / (2 * size), rtol=1e-6)
        np.testing.assert_allclose(own[np.argmax(quality[here])], 1 / size, rtol=1e-6)
        assert own.max() == 1
        # Whatever other domains are made of.
        others = np.where(here, quality, rng.normal(size=40)).astype(np.float32)
        elsewhere = np.where(here, m, rng.integers(7, 9, 40)).astype(np.int32)
        np.testing.assert_array_equal(rank_of(others, elsewhere)[here], own)
    np.testing.assert_array_equal(rank_of(np.exp(quality), DOMAIN), found)
    np.testing.assert_array_equal(rank_of(-quality, DOMAIN, higher_is_better=False), found)


def test_ranks_by_tokens_round_within_their_domain():
    # A prefix sum over all domains would lose the ones behind 2^24 tokens.
    tokens, domain = np.ones(40, np.int32), np.ones(40, np.int32)
    tokens[:2], domain[:2] = 2**24, 0
    found = rank_of(-np.arange(40, dtype=np.float32), domain, tokens=tokens)
    expected = np.concatenate([[0.5, 1], np.arange(1, 39) / 38])
    np.testing.assert_allclose(found, expected, rtol=1e-7)


def test_scores_on_one_scale():
    scores = np.random.default_rng(2).normal(3, 5, (40, 2)).astype(np.float32)
    by = {
        norm: np.asarray(normalize(scores, norm=norm))
        for norm in ("quantile", "zscore", "minmax", "none")
    }
    np.testing.assert_array_equal(by["none"], scores)
    np.testing.assert_allclose(np.sort(by["quantile"][:, 0]), (np.arange(40) + 0.5) / 40, rtol=1e-6)
    np.testing.assert_allclose(by["zscore"].mean(0), 0, atol=1e-6)
    np.testing.assert_allclose(by["zscore"].std(0), 1, rtol=1e-5)
    assert by["minmax"].min() == 0
    assert by["minmax"].max() == 1
    # Orientation survives, and a criterion that is the same everywhere has no say.
    flipped = normalize(-scores)
    np.testing.assert_allclose(flipped, 1 - by["quantile"], rtol=1e-5)
    same = np.full((40, 2), 0.1, np.float32)
    for norm, value in (("quantile", 0.5), ("zscore", 0), ("minmax", 0)):
        np.testing.assert_array_equal(normalize(same, norm=norm), value)


def test_merged_quality_is_the_weighted_sum():
    scores = np.random.default_rng(3).normal(size=(40, 2)).astype(np.float32)
    alpha = np.array([[1, 0], [0, 1], [0.25, 0.75]], np.float32)
    found = merge(scores, DOMAIN, alpha, norm="none")
    np.testing.assert_allclose(found, np.einsum("dn,dn->d", scores, alpha[DOMAIN]), rtol=1e-6)
    quantiles = normalize(scores)
    np.testing.assert_allclose(
        merge(scores, DOMAIN, alpha), merge(quantiles, DOMAIN, alpha, norm="none"), rtol=1e-6
    )


def test_domain_weights_are_a_special_case():
    weights, sizes = np.array([0.6, 0.3, 0.1], np.float32), np.array([4, 9, 27], np.float32)
    chosen = selection.mixture_params(weights, sizes, num_scores=2)
    rank = rank_of(np.arange(40, dtype=np.float32), DOMAIN)
    found = value_of(rank, DOMAIN, chosen)
    np.testing.assert_allclose(found, (weights / sizes)[DOMAIN], rtol=1e-6)
    np.testing.assert_allclose(mixture_of(found, DOMAIN, 3), weights, rtol=1e-6)


@pytest.mark.parametrize(
    ("prior", "highest", "mean_of_logarithm"),
    [("wide", (1e3, 1, 3, 0.1), True), ("paper", (1e3, 0.1, 1, 1e-3), False)],
)
def test_prior(key, prior, highest, mean_of_logarithm):
    found = draw(jax.random.split(key, 4000), prior)
    np.testing.assert_allclose(np.sum(found.alpha, axis=2), 1, rtol=1e-5)
    np.testing.assert_allclose(np.mean(found.alpha), 0.5, atol=0.02)
    lowest = (1, 0.02, 0, 1e-4) if mean_of_logarithm else (0, 0, 0, 0)
    for leaf, low, high in zip(found[1:], lowest, highest):
        assert float(leaf.min()) >= low * (1 - 1e-5)
        assert 0.9 * high < float(leaf.max()) <= high * (1 + 1e-5)
        middle = np.sqrt(low * high) if mean_of_logarithm and low else (low + high) / 2
        assert 0.45 < float(np.mean(leaf < middle)) < 0.55


def test_sharded(mesh):
    rng = np.random.default_rng(4)
    domain = rng.permutation(DOMAIN)
    scores = rng.normal(size=(40, 2)).astype(np.float32)
    tokens = rng.integers(1, 9, 40).astype(np.int32)

    @jax.jit
    def whole(scores, domain, tokens):
        quality = selection.merge_quality(scores, domain, params().alpha)
        rank = selection.domain_rank(quality, domain, tokens=tokens)
        values = selection.sampling_value(rank, domain, params())
        scaled = selection.scale_to_budget(values, 30.0, tokens=tokens, max_copies=2.0)
        return rank, scaled, selection.draw_copies(jax.random.key(0), scaled)

    alone = whole(scores, domain, tokens)
    split = jax.device_put((scores, domain, tokens), NamedSharding(mesh, PartitionSpec("data")))
    for a, b in zip(whole(*split), alone):
        np.testing.assert_allclose(a, b, rtol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"omega": 0.0}, "omega > 0"),
        ({"omega": 1.5}, r"omega in \(0, 1\]"),
        ({"eta": -1.0}, "eta >= 0"),
        ({"eps": -0.1}, "eps >= 0"),
        ({"lam": np.nan}, "lam >= 0"),
        ({"alpha": [[0.0, 0.0]] * 3}, "a row of zeros"),
        ({"alpha": [[1.0, -1.0]] * 3}, "alpha >= 0"),
        ({"lam": [1.0, 2.0]}, r"lam of \(3,\) domains"),
    ],
)
def test_bad_params(changes, message):
    with pytest.raises(ValueError, match=message):
        selection.sampling_value(ranks(), DOMAIN, params(**changes))


def test_bad_input(key):
    scores, alpha = np.zeros((40, 2), np.float32), params().alpha
    for domain in (DOMAIN - 1, DOMAIN + 1):
        with pytest.raises(ValueError, match=r"domain in 0, ..., 2, got"):
            selection.merge_quality(scores, domain, alpha)
        with pytest.raises(ValueError, match=r"domain in 0, ..., 2, got"):
            selection.sampling_value(ranks(), domain, params())
    with pytest.raises(ValueError, match="one row per document and one column per criterion"):
        selection.merge_quality(scores[:, :1], DOMAIN, alpha)
    with pytest.raises(ValueError, match="finite"):
        selection.normalize_scores(scores * np.nan)
    with pytest.raises(ValueError, match="norm to be one of"):
        selection.normalize_scores(scores, norm="rank")
    with pytest.raises(ValueError, match="at least one document"):
        selection.normalize_scores(scores[:0])
    quality = scores[:, 0]
    with pytest.raises(ValueError, match="at least one document"):
        selection.domain_rank(quality[:0], DOMAIN[:0])
    with pytest.raises(ValueError, match="without NaN"):
        selection.domain_rank(quality * np.nan, DOMAIN)
    with pytest.raises(ValueError, match="tokens > 0"):
        selection.domain_rank(quality, DOMAIN, tokens=0 * DOMAIN)
    with pytest.raises(ValueError, match=r"domain of shape \(40,\)"):
        selection.domain_rank(quality, DOMAIN[1:])
    with pytest.raises(ValueError, match="rank and domain of one shape"):
        selection.sampling_value(ranks(), DOMAIN[1:], params())
    with pytest.raises(ValueError, match="weights and sizes of one length"):
        selection.mixture_params(quality[:3], 1 + quality[:2])
    with pytest.raises(ValueError, match=r"omega in \(0, 1\]"):
        selection.quality_filter_params(2 + quality[:3])
    with pytest.raises(ValueError, match="prior to be one of"):
        selection.sample_mix_params(key, 3, 2, prior="narrow")
    with pytest.raises(ValueError, match="num_scores > 0"):
        selection.sample_mix_params(key, 3, 0)


def test_integers_count_as_floats():
    judged = np.array([[1, 5], [9, 5], [2, 4], [2, 3]], np.int32)
    domain, alpha = np.array([0, 0, 1, 1]), np.array([[1, 1], [2, 0]])
    for norm in ("quantile", "zscore", "none"):
        np.testing.assert_array_equal(
            selection.merge_quality(judged, domain, alpha, norm=norm),
            selection.merge_quality(
                judged.astype(np.float32), domain, alpha.astype(np.float32), norm=norm
            ),
        )
    ranks = selection.domain_rank(judged[:, 0].astype(np.uint8), domain)
    np.testing.assert_array_equal(ranks, [1, 0.5, 1, 1])
    found = selection.mixture_params(np.array([1, 3]), np.array([2, 4]), num_scores=2)
    assert found.alpha.tolist() == [[0.5, 0.5]] * 2
    assert found.eps.tolist() == [0.5, 0.75]


@pytest.mark.parametrize("unit", [1e-30, 1e30])
def test_scores_of_any_unit(unit):
    scores = np.float32(unit) * np.array([[0.0], [1.0], [2.0]], np.float32)
    found = normalize(scores, norm="zscore")[:, 0]
    np.testing.assert_allclose(found, [-(1.5**0.5), 0, 1.5**0.5], rtol=1e-5, atol=1e-6)
