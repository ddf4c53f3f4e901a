"""The loop: the same numbers traced, in chunks, restored and over seeds."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.runner import pure_loop
from experiments.runner.compiled import shared_programs
from experiments.runner.loop import make_loop


def step(state, data):
    key, draw = jax.random.split(state["key"])
    noise = jax.random.normal(draw, state["x"].shape)
    return {"x": 0.9 * state["x"] + data["slope"] * noise, "key": key, "empty": state["empty"]}


def evaluate(state, data):
    return {"x": state["x"], "mean": jnp.mean(state["x"]) * data["slope"]}


def init(key):
    return {"x": jnp.ones(3), "key": key, "empty": jnp.zeros((0, 2))}


DATA = {"slope": np.float32(0.5)}


def test_counts_steps_by_hand():
    loop = make_loop(None)
    state, history = loop(lambda s, d: s + d, 0, 6, every=2, evaluate=lambda s, d: s * d, data=3)
    assert state == 18
    np.testing.assert_array_equal(history, [0, 18, 36, 54])


@pytest.mark.parametrize("saved", [False, True])
def test_chunks_equal_one_scan(key, tmp_path, saved):
    loop = make_loop(tmp_path if saved else None, save_seconds=0)
    run = functools.partial(loop, step, init(key), 6, every=2, evaluate=evaluate, data=DATA)
    traced = jax.jit(
        lambda k, d: pure_loop(step, init(k), 6, every=2, evaluate=evaluate, data=d)[1]
    )(key, DATA)
    state, history = run()
    assert history["x"].shape == (4, 3)
    np.testing.assert_array_equal(history["x"][-1], state["x"])
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6), history, traced)


def test_finished_loop_is_read_back_and_not_run(key, tmp_path):
    first = make_loop(tmp_path)(step, init(key), 4, every=2, evaluate=evaluate, data=DATA)
    steps = []

    def counted(state, data):
        jax.debug.callback(lambda: steps.append(1))
        return step(state, data)

    again = make_loop(tmp_path)(counted, init(key), 4, every=2, evaluate=evaluate, data=DATA)
    jax.effects_barrier()
    assert not steps
    assert_same(first, again)


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg"])
def test_continues_bit_equal_from_the_middle(impl, tmp_path):
    start = init(jax.random.key(3, impl=impl))
    whole = make_loop(None)(step, start, 8, every=2, evaluate=evaluate, data=DATA)
    # A run that was stopped half way has done the same steps, and saved the same history.
    make_loop(tmp_path)(step, start, 4, every=2, evaluate=evaluate, data=DATA)
    rest = make_loop(tmp_path)(step, start, 8, every=2, evaluate=evaluate, data=DATA)
    assert_same(whole, rest)
    assert jax.random.key_impl(rest[0]["key"]) == impl


def test_loops_are_numbered_in_call_order(key, tmp_path):
    loop = make_loop(tmp_path)
    for _ in range(2):
        loop(step, init(key), 2, every=1, data=DATA)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["loop000", "loop001"]


def test_seeds_as_one_vmap_equal_one_by_one(tmp_path):
    keys = jax.random.split(jax.random.key(0), 3)
    states = jax.vmap(init)(keys)
    options = {"every": 2, "evaluate": evaluate, "data": DATA}
    state, history = make_loop(tmp_path, vmap_seeds=True)(step, states, 4, **options)
    _, traced = pure_loop(step, states, 4, vmap_seeds=True, **options)
    assert history["x"].shape == (3, 3, 3)
    assert history["mean"].shape == (3, 3)
    for i, k in enumerate(keys):
        _, alone = make_loop(None)(step, init(k), 4, **options)
        np.testing.assert_allclose(history["x"][i], alone["x"], rtol=1e-6)
        np.testing.assert_allclose(traced["mean"][i], alone["mean"], rtol=1e-5)
    assert_same((state, history), make_loop(tmp_path, vmap_seeds=True)(step, states, 4, **options))


def test_seeds_share_their_programs():
    def seed(offset):
        shift = jnp.full(100, offset)  # differs, and is closed over
        state, _ = make_loop(None)(lambda s, d: jnp.sort(s) + shift, jnp.zeros(100), 2, every=2)
        return float(state[0])

    with shared_programs() as folder:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        counts = []
        for offset in (1.0, 2.0, 3.0):
            assert seed(offset) == 2 * offset
            counts.append(len(list(folder.glob("jit_call-*-cache"))))
    assert counts[0] > 0
    assert counts == counts[:1] * 3
    assert not folder.exists()


def test_without_evaluate_there_is_no_history(key):
    assert make_loop(None)(step, init(key), 2, every=1, data=DATA)[1] is None
    assert pure_loop(step, init(key), 2, every=1, data=DATA)[1] is None


def test_a_traced_state_takes_the_pure_loop(tmp_path):
    loop = make_loop(tmp_path)
    rates = jnp.array([1.0, 2.0])
    double = lambda rate: loop(lambda s, d: s * rate, jnp.float32(1), 3, every=3)[0]
    np.testing.assert_array_equal(jax.vmap(double)(rates), [1, 8])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("loop", [pure_loop, make_loop(None)], ids=["pure", "chunks"])
@pytest.mark.parametrize(("steps", "every"), [(5, 2), (4, 0)])
def test_every_must_divide(loop, steps, every):
    with pytest.raises(ValueError, match=f"every to divide num_steps, got every={every}"):
        loop(lambda s, d: s, 0, steps, every=every)


def test_other_code_than_the_checkpoint_is_refused(tmp_path):
    make_loop(tmp_path)(lambda s, d: s, jnp.zeros(3), 2, every=1)
    with pytest.raises(ValueError, match=r"checkpoint of \(4,\) float32, got \(3,\)"):
        make_loop(tmp_path)(lambda s, d: s, jnp.zeros(4), 2, every=1)


def assert_same(one, other):
    def same(a, b):
        if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        np.testing.assert_array_equal(a, b)

    jax.tree.map(same, one, other)
