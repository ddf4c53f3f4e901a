"""The benchmark of curvature at toy sizes: its variants compute the same."""

import jax
import pytest

from experiments.benchmarks import curvature


def test_both_ways_to_a_product_agree():
    jobs = ("Hessian-vector product", "jvp of grad")
    with jax.numpy_rank_promotion("allow"):
        reports = [curvature.build(job, tiny=True)[1] for job in jobs]
    assert reports[0]["quantity"] == reports[1]["quantity"]
    assert reports[0]["value"] == pytest.approx(reports[1]["value"], rel=1e-5)
    assert reports[0]["value"] > 0


def test_every_variant_has_a_baseline_of_its_case():
    for name in curvature.CASES:
        variants = curvature.variants(name, tiny=True, python=curvature.PEERS)
        names = {variant.name for variant in variants}
        assert all(base in names for variant in variants for base in variant.baseline)
    assert set(curvature.GOALS) <= {job for jobs in curvature.CASES.values() for job in jobs}
