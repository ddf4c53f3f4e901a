"""D4RL and Minari files, written here and read back."""

import numpy as np
import pytest

from gradkin.data import rl

h5py = pytest.importorskip("h5py", reason="gradkin[rl] is not installed")


def d4rl(path, **changes):
    n = 6
    columns = {
        "observations": np.arange(2.0 * n).reshape(n, 2),
        "actions": np.zeros((n, 1)),
        "rewards": np.arange(float(n))[:, None],
        "terminals": np.array([0, 1, 0, 0, 0, 0], bool),
        "timeouts": np.array([0, 0, 0, 1, 0, 0], bool),
    } | changes
    with h5py.File(path, "w") as file:
        for name, value in columns.items():
            if value is not None:
                file[name] = value
    return path


def minari(path, episodes=(2, 3), **changes):
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for number, steps in enumerate(episodes):
            group = file.create_group(f"episode_{number}")
            columns = {
                "observations": 10 * number + np.arange(steps + 1.0)[:, None],
                "actions": np.zeros((steps, 1)),
                "rewards": np.ones(steps),
                "terminations": np.arange(steps) == steps - 1,
                "truncations": np.zeros(steps, bool),
            } | changes
            for name, value in columns.items():
                if value is not None:
                    group[name] = value
    return path


def test_d4rl_transitions_are_those_of_the_loop(tmp_path):
    episodes = rl.read_episodes(d4rl(tmp_path / "a.hdf5"))
    data, ids = rl.transitions(episodes)
    kept = [i for i in range(5) if not episodes.timeouts[i]]  # D4RL's loop
    assert data["observation"][:, 0].tolist() == [2 * i for i in kept]
    assert data["next_observation"][:, 0].tolist() == [2 * (i + 1) for i in kept]
    assert data["terminal"].tolist() == [0, 1, 0, 0]
    assert ids.tolist() == [0, 0, 1, 2]
    assert data["observation"].dtype == np.float32


def test_successors_from_the_file_keep_every_step(tmp_path):
    after = np.arange(12.0).reshape(6, 2) + 100
    data, ids = rl.transitions(rl.read_d4rl(d4rl(tmp_path / "a.hdf5", next_observations=after)))
    np.testing.assert_array_equal(data["next_observation"], after)
    assert ids.tolist() == [0, 0, 1, 1, 2, 2]


def test_time_outs_inferred_from_the_length(tmp_path):
    path = d4rl(tmp_path / "a.hdf5", timeouts=None)
    assert not rl.read_d4rl(path).timeouts.any()
    cut = rl.read_d4rl(path, max_episode_steps=2).timeouts
    assert cut.tolist() == [False, False, False, True, False, True]


def test_minari_by_folder_and_file(tmp_path):
    path = minari(tmp_path / "ns" / "set-v0" / "data" / "main_data.hdf5")
    for where in (path, path.parent, path.parent.parent):
        data, ids = rl.transitions(rl.read_episodes(where))
        assert data["observation"][:, 0].tolist() == [0, 1, 10, 11, 12]
        assert data["next_observation"][:, 0].tolist() == [1, 2, 11, 12, 13]
        assert ids.tolist() == [0, 0, 1, 1, 1]


def test_minari_dictionary_observations(tmp_path):
    path = minari(tmp_path / "main_data.hdf5", episodes=(2,), observations=None)
    with h5py.File(path, "a") as file:
        group = file["episode_0"].create_group("observations")
        group["x"], group["goal"] = np.ones((3, 2)), np.zeros(3)
    episodes = rl.read_minari(path, observation_keys=("x", "goal"))
    assert episodes.observations.tolist() == [[1, 1, 0], [1, 1, 0]]
    with pytest.raises(ValueError, match="observation_keys among"):
        rl.read_minari(path)
    with pytest.raises(KeyError, match="observations/y"):
        rl.read_minari(path, observation_keys=("y",))


def test_provenance(tmp_path):
    path = d4rl(tmp_path / "a.hdf5")
    assert rl.provenance(path) == {}
    with h5py.File(path, "a") as file:
        file["metadata/provenance"] = '{"env": "x"}'
    assert rl.provenance(path) == {"env": "x"}


@pytest.mark.parametrize("name", ["observations", "actions", "rewards", "terminals"])
def test_a_missing_key_is_named_with_its_file(tmp_path, name):
    path = d4rl(tmp_path / "broken.hdf5", **{name: None})
    with pytest.raises(KeyError, match=rf"'{name}' in .*broken.hdf5"):
        rl.read_d4rl(path)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"actions": np.zeros((5, 1))}, r"one length for every key in .*a.hdf5.*'actions': 5"),
        (
            {"rewards": np.array([0, 1, np.nan, 0, 0, 0])},
            r"a.hdf5, got nan at key 'rewards', row 2",
        ),
    ],
)
def test_bad_columns(tmp_path, changes, match):
    with pytest.raises(ValueError, match=match):
        rl.read_d4rl(d4rl(tmp_path / "a.hdf5", **changes))


def test_nothing_there_or_nothing_left(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere.hdf5"):
        rl.read_episodes(tmp_path / "nowhere.hdf5")
    with pytest.raises(ValueError, match="episode_<number>"):
        rl.read_minari(minari(tmp_path / "main_data.hdf5", episodes=()))
    with pytest.raises(ValueError, match="3 observations for 2 steps"):
        rl.read_minari(minari(tmp_path / "m.hdf5", episodes=(2,), observations=np.zeros((2, 1))))
    x, no = np.zeros((1, 1)), np.zeros(1, bool)
    empty = {"observations": x[:0], "actions": x[:0], "rewards": x[:0], "terminals": no[:0],
             "timeouts": no[:0]}  # fmt: skip
    with pytest.raises(ValueError, match="at least one step"):
        rl.read_d4rl(d4rl(tmp_path / "a.hdf5", **empty))
    with pytest.raises(ValueError, match="a step with a successor"):
        rl.transitions(rl.Episodes(x, x, no.astype("f"), no, ~no, None, "memory"))
