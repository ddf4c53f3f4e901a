"""Making data: training with resume, export with provenance, and what is not there."""

import numpy as np
import pytest

pytest.importorskip("gymnasium", reason="gradkin[rl] is not installed")
pytest.importorskip("h5py", reason="gradkin[rl] is not installed")

from experiments.dice import collect, mujoco
from gradkin.data import rl

SMALL = ["--env", "Pendulum-v1", "--random-steps", "200", "--every", "200", "--width", "4",
         "--batch", "4"]  # fmt: skip


def train(out, steps, *more):
    collect.main(["train", *SMALL, "--steps", str(steps), "--out", str(out), *more])
    return out / "policies.npz"


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_resumed_training_ends_where_the_whole_one_does(tmp_path):
    whole = train(tmp_path / "whole", 600)
    train(tmp_path / "parts", 400)
    parts = train(tmp_path / "parts", 600, "--resume")
    assert whole.read_bytes() == parts.read_bytes()
    assert len((tmp_path / "parts" / "progress.csv").read_text().splitlines()) == 3

    out = tmp_path / "data.hdf5"
    collect.main(["export", "--policies", str(whole), "--mixture", "random=1,expert=2",
                  "--out", str(out)])  # fmt: skip
    episodes = rl.read_d4rl(out)
    assert episodes.observations.shape == (600, 3)
    assert np.flatnonzero(episodes.timeouts).tolist() == [199, 399, 599]
    about = rl.provenance(out)
    assert about["env"] == "Pendulum-v1"
    assert {name: level["episodes"] for name, level in about["mixture"].items()} == {
        "random": 1, "expert": 2,
    }  # fmt: skip
    with pytest.raises(ValueError, match="'bad'"):
        collect.roll_out(whole, {"bad": 1})


def test_unknown_environment_and_absent_data(tmp_path, monkeypatch):
    monkeypatch.setenv("D4RL_DATASET_DIR", str(tmp_path))
    with pytest.raises(ValueError, match="pong"):
        mujoco.family("pong-v4")
    with pytest.raises(FileNotFoundError, match=r"hopper-medium-v2.hdf5"):
        mujoco.episodes("hopper-medium-v2", {})
    with pytest.raises(FileNotFoundError, match="collect train"):
        mujoco.episodes("sac-ant", {})
