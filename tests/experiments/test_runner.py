"""A run from its arguments to its evidence and exit status."""

import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest

import experiments.__main__ as command
from experiments.runner import discover, evidence, seeds, table
from experiments.runner.run import execute, finish, prepare

FIELDS = {
    "papers",
    "preset",
    "seeds",
    "config",
    "metrics",
    "claims",
    "seconds",
    "device",
    "versions",
    "commit",
    "peak_rss_mb",
}


def go(toys, out, name="toy/descent", **options):
    results = options.pop("results", out / "results")
    ready = prepare(name, root=toys, out=out, **options)
    found = execute(ready, ready.module.load(ready.config))
    assert found is not None
    return finish(ready, found, results=results), found


def test_writes_evidence_figure_and_page(toys, tmp_path, capsys):
    status, found = go(toys, tmp_path)
    assert status == 0
    stored = json.loads((tmp_path / "descent.json").read_text(), parse_constant=pytest.fail)
    assert stored == found
    assert stored.keys() >= FIELDS
    assert stored["seeds"] == [0, 1, 2]
    assert stored["config"] == {"steps": 40, "every": 4, "width": 3, "data": "line"}
    assert np.shape(stored["metrics"]["loss"]) == (3, 22)
    assert stored["claims"][0]["verdict"] == "reproduced"
    assert (tmp_path / "descent.png").read_bytes()[:4] == b"\x89PNG"
    assert "<h2>" in (tmp_path / "report.html").read_text()
    assert not (tmp_path / "checkpoints").exists()
    assert not (tmp_path / "results").exists()
    printed = capsys.readouterr().out
    assert "✓ reproduced" in printed
    assert str(tmp_path / "report.html") in printed.splitlines()[-1]


def test_seeds_are_what_a_loop_over_keys_gives(toys, tmp_path):
    _, one = go(toys, tmp_path / "one", seeds=1)
    _, two = go(toys, tmp_path / "two", seeds=2)
    assert one["metrics"]["loss"] == two["metrics"]["loss"][:1]


def test_status_tells_a_changed_verdict(toys, tmp_path, monkeypatch, capsys, descent):
    doubted = dataclasses.replace(descent.CLAIMS[0], verdict="not reproduced")
    monkeypatch.setattr(descent, "CLAIMS", (doubted,))
    assert go(toys, tmp_path, seeds=1)[0] == 1
    assert "'The loss falls' is reproduced, committed as not reproduced" in capsys.readouterr().err
    assert go(toys, tmp_path, seeds=1, preset="smoke")[0] == 0


def test_smoke_evaluates_no_claim(toys, tmp_path):
    assert go(toys, tmp_path, "toy/walk", preset="smoke")[1]["claims"] == []


def test_saved_evidence(toys, tmp_path, walk):
    status, found = go(toys, tmp_path, "toy/walk", save_evidence=True)
    assert status == 0
    assert evidence.read(tmp_path / "results" / "toy" / "walk.json") == found
    assert found["claims"][0]["verdict"] == "not reproduced"
    with pytest.raises(ValueError, match="evaluates claims to save"):
        go(toys, tmp_path, "toy/walk", preset="smoke", save_evidence=True)


def test_other_data_is_another_file(toys, tmp_path, monkeypatch, descent):
    doubted = dataclasses.replace(descent.CLAIMS[0], verdict="not reproduced")
    monkeypatch.setattr(descent, "CLAIMS", (doubted,))
    status, found = go(toys, tmp_path, seeds=1, data="parabola", save_evidence=True)
    assert status == 0  # the code's verdict is that of the preset's own data
    file = tmp_path / "results" / "toy" / "descent@parabola.json"
    assert evidence.read(file)["config"]["data"] == "parabola"
    found["claims"][0]["verdict"] = "inconclusive"
    evidence.write(file, found)
    assert go(toys, tmp_path, seeds=1, data="parabola")[0] == 1
    assert evidence.file_name("a/b", "here/set.npz") == "a/b@set.json"


def test_resume_of_another_run_is_refused(toys, tmp_path):
    prepare("toy/descent", root=toys, out=tmp_path, seeds=2)
    with pytest.raises(ValueError, match="seeds was 2, is 3"):
        go(toys, tmp_path, seeds=3, resume=True)
    with pytest.raises(
        ValueError, match="preset was 'quick', is 'smoke'; config.steps was 40, is 4"
    ):
        go(toys, tmp_path, seeds=2, preset="smoke", resume=True)
    with pytest.raises(
        ValueError, match=r"config.data was 'line', is 'parabola'\. Start it without"
    ):
        go(toys, tmp_path, seeds=2, data="parabola", resume=True)


def test_resume_of_a_finished_run_computes_nothing(toys, tmp_path, monkeypatch, walk):
    _, found = go(toys, tmp_path, "toy/walk")
    monkeypatch.setattr(walk, "run", lambda *arguments: pytest.fail("it ran"))
    assert go(toys, tmp_path, "toy/walk", resume=True)[1] == found


def test_a_new_run_does_not_mix_with_an_old_one(toys, tmp_path, monkeypatch, walk):
    monkeypatch.setattr(walk, "plot", lambda metrics: 1 / 0)
    mine = tmp_path / "notes.txt"
    mine.write_text("keep")
    leftover = tmp_path / "checkpoints" / "seed0" / "loop000"
    leftover.mkdir(parents=True)
    with pytest.raises(ZeroDivisionError):
        go(toys, tmp_path, "toy/walk")
    prepare("toy/walk", root=toys, out=tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["notes.txt", "run.json"]
    leftover.mkdir(parents=True)
    (tmp_path / "run.json").unlink()
    prepare("toy/walk", root=toys, out=tmp_path, resume=True)  # nothing says what they are of
    assert not leftover.exists()


def test_large_metrics_are_kept_beside_the_error(toys, tmp_path, monkeypatch, walk):
    monkeypatch.setattr(walk, "run", lambda *arguments: {"huge": np.full((3, 10**5), 0.123456)})
    with pytest.raises(ValueError, match="largest are huge"):
        go(toys, tmp_path, "toy/walk")
    assert np.load(tmp_path / "metrics.npz")["huge"].shape == (3, 10**5)


def test_metrics_need_the_seed_axis(walk, monkeypatch):
    monkeypatch.setattr(walk, "run", lambda *arguments: {"x": np.zeros(5)})
    with pytest.raises(ValueError, match=r"leading axis of 3 seeds, got x of shape \(5,\)"):
        seeds.metrics_of(walk, None, 3, {}, folder=None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "toy/none"}, "no experiment 'toy/none'; there are toy/descent, toy/walk"),
        ({"preset": "huge"}, "preset to be one of"),
        ({"seeds": 0}, "seeds to be at least 1"),
        ({"mesh": "model=2"}, "mesh to be data=N"),
        ({"mesh": "data=9"}, "fit 8 devices"),
        ({"multihost": True}, "mesh=data=N with multihost"),
        ({"name": "toy/walk", "data": "digits"}, "makes its own"),
    ],
)
def test_bad_arguments(toys, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        prepare(options.pop("name", "toy/descent"), root=toys, out=tmp_path, **options)
    assert not list(tmp_path.iterdir())


def test_experiments_are_files_that_define_presets(toys):
    assert discover.names(toys) == ["toy/descent", "toy/walk"]
    listed = discover.describe("toy/descent", toys)
    assert listed.papers == ("toy",)
    assert listed.data == ("line", "parabola")
    assert listed.title.startswith("Cauchy 1847")
    assert not any("toy" in name for name in discover.names())


def test_command_line(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert command.app.cli(args=["run", "no/such"]) == 2
    assert "error: There is no experiment 'no/such'" in capsys.readouterr().err
    assert command.app.cli(args=["list"]) == 0
    assert not list(tmp_path.iterdir())


def test_module_starts_no_backend():
    program = (
        "import experiments.__main__, experiments.runner.run, sys; from jax._src import xla_bridge;"
        "sys.exit(bool(xla_bridge._backends))"
    )
    subprocess.run([sys.executable, "-c", program], cwd=discover.ROOT.parent, check=True)


def test_table_wraps_and_marks():
    claim = {
        "text": "word " * 40,
        "paper": "slug",
        "reported": "2 | 3",
        "measured": [1.0, "NaN"],
        "threshold": "> 1",
        "rule": "mean",
        "verdict": "inconclusive",
    }
    found = {"experiment": "a/b", "preset": "quick", "seeds": [0, 1], "seconds": 1.0}
    text = table.render({**found, "peak_rss_mb": 9, "claims": [claim]})
    assert "? inconclusive" in text
    assert "not finite · mean > 1 · slug: 2 | 3" in text
    assert max(map(len, text.splitlines())) <= 100
    assert table.summary([1.0, 2.0, 3.0]) == "2 ± 1"
