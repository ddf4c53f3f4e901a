"""The benchmark of sketches at toy sizes: its variants run and err as chance has it."""

import jax
import numpy as np
import pytest

from experiments.benchmarks import sketches
from experiments.benchmarks.peers import projectors


@pytest.mark.parametrize(
    ("case", "job"),
    [("rows, k = 256", "Hadamard"), ("transformer, k = 256", "Kronecker from the loss")],
)
def test_a_variant_reports_its_error(case, job):
    with jax.numpy_rank_promotion("allow"):
        _, report = sketches.build(case, job, tiny=True)
    # One over the root of k = 64 is 0.125; inner products of rank-one factors spread wider.
    assert 0.01 < report["cosine_error"] < 0.6
    assert report["temporary_mb"] >= 0


def test_error_is_free_of_common_scale():
    x = projectors.rows(tiny=True).reshape(16, -1)
    assert projectors.errors(3 * x, x @ x.T)["inner_product_error"] < 1e-5
    bent = x * np.linspace(0.5, 2, x.shape[1])[None]
    assert projectors.errors(bent, x @ x.T)["inner_product_error"] > 0.01


def test_every_variant_has_a_baseline_of_its_case():
    for case in sketches.CASES:
        variants = sketches.variants(case, tiny=True, python=sketches.PEERS)
        names = {variant.name for variant in variants}
        assert all(base in names for variant in variants for base in variant.baseline)
    assert set(sketches.GOALS) <= set(sketches.SKETCHES)
