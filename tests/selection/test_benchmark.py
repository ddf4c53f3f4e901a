"""The benchmark of batch selection at toy sizes."""

import jax

from experiments.benchmarks import batch_selection


def test_steps_run_and_differ_by_what_they_learn_from():
    with jax.numpy_rank_promotion("allow"):
        values = {
            job: batch_selection.build("4 of 16, T = 64", job, tiny=True)[1]["value"]
            for job in (batch_selection.BASELINE, "UDS")
        }
    # UDS also returns a memory that is no longer zero.
    assert values["UDS"] > values[batch_selection.BASELINE] > 0


def test_every_variant_has_a_baseline_of_its_case():
    for case in batch_selection.CASES:
        variants = batch_selection.variants(case, tiny=True)
        names = {variant.name for variant in variants}
        assert all(base in names for variant in variants for base in variant.baseline)
    assert set(batch_selection.GOALS) <= set(batch_selection.JOBS)
