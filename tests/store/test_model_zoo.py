"""Models on disk: what was saved comes back, one at a time, or there is no zoo."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradkin import store


def models(count=3):
    for i in range(count):
        params = {
            "dense": {"w": jnp.full((2, i + 1), i, jnp.float32), "b": jnp.arange(i + 1.0)},
            "scale": jnp.asarray(i, jnp.bfloat16),
        }
        record = {"width": i + 1, "seed": i % 2, "loss": np.float32(0.5 * i), "curve": jnp.ones(2)}
        yield params, record


def test_what_was_saved_comes_back(tmp_path):
    zoo = store.save_zoo(tmp_path / "zoo", models())
    again = store.open_zoo(tmp_path / "zoo")
    assert len(zoo) == len(again) == 3
    assert again.records == zoo.records
    assert again.records[1] == {"width": 2, "seed": 1, "loss": 0.5, "curve": [1.0, 1.0]}
    for number, (params, _) in enumerate(models()):
        for found in (again.params(number), again.params(number, like=params)):
            assert jax.tree.structure(found) == jax.tree.structure(params)
            for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(params)):
                assert a.dtype == b.dtype
                np.testing.assert_array_equal(a, b)


def test_models_are_found_by_their_records(tmp_path):
    zoo = store.save_zoo(tmp_path, models())
    assert zoo.find(seed=0) == (0, 2)
    assert zoo.find(seed=0, width=3) == (2,)
    assert zoo.find(width=9) == ()
    with pytest.raises(KeyError, match="colour"):
        zoo.find(colour="blue")
    with pytest.raises(IndexError, match="from 0 to 2, got 3"):
        zoo.params(3)


def test_a_save_that_was_cut_short_is_no_zoo(tmp_path):
    def failing():
        yield from models(2)
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        store.save_zoo(tmp_path, failing())
    with pytest.raises(FileNotFoundError, match=r"zoo\.json"):
        store.open_zoo(tmp_path)
    assert len(store.save_zoo(tmp_path, models())) == 3
    with pytest.raises(FileExistsError, match="There is a zoo"):
        store.save_zoo(tmp_path, models())


def test_bad_input(tmp_path):
    with pytest.raises(ValueError, match="at least one model"):
        store.save_zoo(tmp_path / "empty", [])
    with pytest.raises(TypeError, match="JSON can hold, got object"):
        store.save_zoo(tmp_path / "odd", [({"w": np.ones(1)}, {"what": object()})])
    (tmp_path / "zoo.json").write_text(json.dumps({"format": "another"}))
    with pytest.raises(ValueError, match="not of this format"):
        store.open_zoo(tmp_path)
