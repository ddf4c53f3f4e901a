"""The benchmark harness at toy sizes: nothing here is a measurement."""

import json
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from experiments.benchmarks import harness, models, per_example_gradients
from experiments.benchmarks.harness import Settings, Variant

FAST = Settings(rounds=2, seconds=0.0, patience=60.0)


def sleeper(name: str, seconds: float, baseline: tuple[str, ...], **report) -> Variant:
    """A variant that only sleeps."""
    code = (
        "import time; from experiments.benchmarks.worker import serve; "
        f"serve(lambda: (lambda: time.sleep({seconds}), {report!r}))"
    )
    return Variant(name, (sys.executable, "-c", code), baseline)


def test_ratio_is_to_the_fastest_baseline_and_missing_variants_are_named(tmp_path):
    broken = Variant("broken", (sys.executable, "-c", "raise SystemExit('no luck')"), ())
    absent = Variant("absent", (str(tmp_path / "python"),), (), "peer: make peers")
    rows = harness.measure(
        [
            sleeper("plain slow", 0.04, (), quantity="sum", value=1.0),
            sleeper("plain fast", 0.01, (), quantity="sum", value=1.0),
            sleeper("job", 0.03, ("plain slow", "plain fast"), quantity="sum", value=1.1),
            broken,
            absent,
        ],
        FAST,
    )
    assert rows["job"]["baseline"] == "plain fast"
    assert 2.0 < rows["job"]["ratio"] < 4.0
    assert rows["job"]["agrees"] is False
    assert "no luck" in rows["broken"]["skipped"]
    assert rows["absent"]["skipped"] == "no peer: make peers"
    text = harness.table(rows, {"job": 1.1})
    assert "MISSES 1.1" in text
    assert "COMPUTES SOMETHING ELSE" in text


def test_a_variant_that_does_not_answer_is_given_up():
    rows = harness.measure([sleeper("slow", 60.0, ())], FAST._replace(patience=1.0))
    assert "no answer within 1 s" in rows["slow"]["skipped"]


def test_busy_machines_are_refused(monkeypatch):
    monkeypatch.setattr(harness, "busy_share", lambda: 0.5)
    with pytest.raises(SystemExit, match="50% of the processors"):
        harness.refuse_if_busy(False)
    assert harness.refuse_if_busy(True) == 0.5


def test_one_case_in_its_own_processes_is_written_whole(tmp_path, monkeypatch):
    jobs = (per_example_gradients.PLAIN[0], "clipped mean", "vmap(grad) clipped mean")
    every = per_example_gradients.variants
    monkeypatch.setattr(
        per_example_gradients,
        "variants",
        lambda *a, **k: [v for v in every(*a, **k) if v.name in jobs],
    )
    path = tmp_path / "results.json"
    path.write_text(json.dumps({"benchmark": "x", "cases": {"kept": {"variants": {}}}}))
    options = ["--tiny", "--only", "lstm", "--repeats", "1", "--seconds", "0", "--out", str(path)]
    assert per_example_gradients.main(options) == 0
    written = json.loads(path.read_text())["cases"]
    assert set(written) == {"kept", "lstm"}
    rows = written["lstm"]["variants"]
    assert set(rows) == set(jobs)
    for name, row in rows.items():
        assert row["agrees"], name
        assert row["ratio"] > 0
        assert row["temporary_mb"] >= 0
    assert "| lstm |" in harness.markdown(written, {})


def test_unknown_case_is_refused():
    with pytest.raises(SystemExit, match="no case nonsense"):
        per_example_gradients.main(["--tiny", "--only", "nonsense"])


@pytest.mark.parametrize("name", ["cnn", "lstm", "mlp-8", "transformer-64-remat", "vit-tiny"])
def test_batch_loss_is_the_mean_of_the_losses(name):
    case = models.tiny(name)
    with jax.numpy_rank_promotion("allow"):
        each = jax.vmap(case.loss, (None, 0))(case.params, case.batch)
        batch_loss = case.batch_loss(case.params, case.batch)
    np.testing.assert_allclose(batch_loss, np.mean(each), rtol=1e-5)


def test_peers_are_asked_only_for_what_they_can_run():
    named = {
        v.name
        for v in per_example_gradients.peers("transformer-64", tiny=True, python=Path("python"))
    }
    assert "jax_privacy default" in named
    assert not any(name.startswith("opacus") for name in named)
