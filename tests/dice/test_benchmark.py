"""The benchmark of ODICE at toy sizes: every variant of ours builds, and what it reports."""

import sys

from experiments.benchmarks import dice, harness
from experiments.benchmarks.peers import odice_torch


def test_variants_and_one_build():
    found = dice.variants("hopper", tiny=True)
    assert {v.name for v in found} == {
        "PyTorch orthogonal", "PyTorch semi", "PyTorch true", "orthogonal", "semi", "true",
        "orthogonal, 8 seeds",
    }  # fmt: skip
    assert all(v.baseline[0].startswith("PyTorch") for v in found)
    step, report = dice.build("antmaze", "orthogonal", tiny=True)
    step()
    assert report["value"] > 0
    assert report["updates_per_call"] == odice_torch.UPDATES


def test_a_missing_peer_is_named(tmp_path):
    missing = dice.variants("hopper", tiny=True, python=tmp_path / "python")[0]
    rows = harness.measure([missing], harness.Settings(rounds=1, seconds=0.0, patience=5.0))
    assert rows[missing.name]["skipped"] == "no PyTorch: make peers"
    assert sys.executable not in missing.command
