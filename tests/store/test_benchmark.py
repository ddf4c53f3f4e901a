"""The benchmark of the store at toy sizes: the store and the memory map find the same."""

import pytest

from experiments.benchmarks import gradient_store
from experiments.benchmarks.peers import gradient_store_peers as peers


def test_the_store_and_the_map_agree(tmp_path):
    name = "16 queries, dropped from the page cache"
    step, theirs = peers.build(name, gradient_store.MAP, tmp_path, True)
    reports = {}
    for dtype in gradient_store.DTYPES:
        _, reports[dtype] = gradient_store.build(name, dtype, tmp_path, True)
    assert theirs["quantity"] == reports["float32"]["quantity"]
    assert reports["float32"]["value"] == pytest.approx(theirs["value"], rel=1e-5)
    assert reports["int8"]["recall"] > 0.9
    assert reports["int8"]["gigabytes"] < theirs["gigabytes"] / 3
    assert reports["int8"]["rows_per_second_written"] > 0
    scores, indices = step()
    assert scores.shape == indices.shape == (16, 100)


def test_variants_are_compared_with_the_map(tmp_path):
    for name in peers.CASES:
        found = gradient_store.variants(
            name, tiny=True, python=gradient_store.PEERS, folder=tmp_path
        )
        assert [variant.name for variant in found][0] == gradient_store.MAP
        assert {variant.baseline for variant in found} == {(gradient_store.MAP,)}


def test_speeds_are_shown():
    row = {
        "milliseconds": 2000.0,
        "gigabytes": 4.0,
        "gigabytes_read_from_disk": 0.0,
        "peak_rss_mb": 900,
        "rows_per_second_written": 12345,
    }
    text = gradient_store.speeds({"store": row, "absent": {"skipped": "no"}})
    assert "2.00 GB/s" in text
    assert "12345 rows/s" in text
    assert "absent" not in text
