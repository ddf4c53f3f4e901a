"""LESS: warm-up, scores in the paper's and the released code's form, the store's route, a mesh."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from gradkin import curvature, gradients, optim, selection, store

RELEASED: Any = {"bias_correction": False, "eps_inside_sqrt": True}
SCHEDULE = optax.linear_schedule(0.05, 0.01, 6)
OPTIMIZER = optax.adam(SCHEDULE)
SKETCH = gradients.RademacherSketch(jax.random.key(5), 64)
SUBTASKS = np.array([0, 1, 2, 0, 1, 2])


def predict(params, x):
    return jnp.tanh(x @ params["in"]) @ params["out"]


def loss(params, example):
    return example[2] * curvature.cross_entropy(predict(params, example[0]), example[1])


def examples(key, count):
    for_x, for_y = jax.random.split(key)
    y = jax.random.randint(for_y, (count,), 0, 3)
    return jax.random.normal(for_x, (count, 6)), y, jnp.ones(count)


@pytest.fixture(scope="module")
def task():
    """Parameters, a pool of 32 and 6 validation examples."""
    k = jax.random.split(jax.random.key(1), 4)
    params = {"in": jax.random.normal(k[0], (6, 5)) / 2, "out": jax.random.normal(k[1], (5, 3)) / 2}
    return params, examples(k[2], 32), examples(k[3], 6)


# Everything below runs the same few compiled programs.
features_of = functools.partial(selection.less_features, loss, sketch=SKETCH, batch_size=8)
warm_up = functools.partial(
    selection.warm_up,
    loss_fn=loss,
    optimizer=OPTIMIZER,
    learning_rate=SCHEDULE,
    epochs=3,
    batch_size=8,
)


@pytest.fixture(scope="module")
def made(task):
    """Checkpoints and features of the pool and of validation."""
    params, pool, validation = task
    checkpoints, _ = warm_up(jax.random.key(2), params=params, pool=pool, num_examples=8)
    return (
        checkpoints,
        features_of(checkpoints, pool),
        features_of(checkpoints, validation, direction="gradient"),
    )


def at(tree, c):
    return jax.tree.map(lambda x: x[c], tree)


def flat(tree):
    return np.concatenate([np.reshape(x, (len(x), -1)) for x in jax.tree.leaves(tree)], axis=1)


@jax.jit
def gradients_of(params, batch):
    return jax.vmap(jax.grad(loss), (None, 0))(params, batch)


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def by_hand(train, validation, rates, subtasks, mean="gradient", metric="cosine"):
    train, validation = np.asarray(train, np.float64), np.asarray(validation, np.float64)
    rates = np.asarray(rates, np.float64)
    scores = []
    for j in range(subtasks.max() + 1):
        ours = validation[:, subtasks == j]
        if mean == "cosine":
            each = np.einsum("cnk,cmk->cnm", unit(train), unit(ours)).mean(-1)
            scores.append((rates / rates.sum()) @ each)
        elif metric == "dot":
            scores.append(rates @ np.einsum("cnk,ck->cn", train, ours.mean(1)))
        else:
            scores.append(rates @ np.einsum("cnk,ck->cn", unit(train), unit(ours.mean(1))))
    return np.max(scores, axis=0)


# ---- warm-up -----------------------------------------------------------------------------


def test_warm_up_is_training_on_what_it_drew(task):
    """With one batch an epoch the order does not matter: checkpoints are those of plain steps."""
    params, pool, _ = task
    checkpoints, used = warm_up(jax.random.key(3), params=params, pool=pool, fraction=0.25)
    assert len(set(used.tolist())) == len(used) == 8
    np.testing.assert_allclose(checkpoints.learning_rates, 0.05 - 0.04 * np.arange(3) / 6, 1e-6)
    assert checkpoints.moments is not None
    few = jax.tree.map(lambda x: x[used], pool)
    grad = jax.grad(lambda p: jnp.mean(jax.vmap(loss, (None, 0))(p, few)))
    step = jax.jit(lambda p, state: optim.update(OPTIMIZER, grad(p), state, p))
    state = OPTIMIZER.init(params)
    for epoch in range(3):
        params, state = step(params, state)
        kept = at(checkpoints, epoch)
        wanted = gradients.adam_moments(state, params)
        assert int(kept.moments.count) == int(wanted.count) == epoch + 1
        for found, value in zip(
            jax.tree.leaves((kept.params, kept.moments.mu, kept.moments.nu)),
            jax.tree.leaves((params, wanted.mu, wanted.nu)),
        ):
            np.testing.assert_allclose(found, value, rtol=1e-3, atol=1e-6)


def test_an_epoch_uses_every_example_once():
    """The gradient of example i is the i-th unit vector; the last batch of five by two has one."""
    checkpoints, used = selection.warm_up(
        jax.random.key(0), lambda w, x: w @ x, jnp.zeros(9), jnp.eye(9),
        optimizer=optax.sgd(1.0), learning_rate=1.0, num_examples=5, epochs=2, batch_size=2,
    )  # fmt: skip
    assert checkpoints.moments is None
    for epoch, w in enumerate(np.asarray(checkpoints.params), start=1):
        assert set(np.flatnonzero(w)) == set(used.tolist())
        np.testing.assert_allclose(w.sum(), -3 * epoch)  # three steps of total weight one
        assert sorted(-w[np.asarray(used)])[0] == 0.5 * epoch
    with pytest.raises(ValueError, match="Expected checkpoints with Adam's moments"):
        selection.less_features(lambda w, x: w @ x, checkpoints, jnp.eye(9), sketch=None)


def test_fewer_examples_than_a_batch_are_one(mesh):
    """Also where the batch has to stay a multiple of the number of devices."""
    found = [
        selection.warm_up(
            jax.random.key(0), lambda w, x: w @ x, jnp.zeros(9), jnp.eye(9), sharding=sharding,
            optimizer=optax.sgd(1.0), learning_rate=1.0, num_examples=4, epochs=2, batch_size=8,
        )
        for sharding in (None, NamedSharding(mesh, PartitionSpec("data")))
    ]  # fmt: skip
    for checkpoints, used in found:
        wanted = np.zeros((2, 9))
        wanted[:, np.asarray(used)] = -0.25 * np.array([[1], [2]])
        np.testing.assert_allclose(checkpoints.params, wanted)


def test_frozen_parameters_are_arguments():
    """As `less_features` says: a loss made inside `jit`, of frozen parameters that it is given."""
    traces = []
    shapes = jax.ShapeDtypeStruct((50_000, 4), np.float32)

    @jax.jit
    def found(adapter, frozen, pool):
        def of_example(adapter, x):
            return jnp.sum(jnp.tanh((frozen + adapter["a"] @ adapter["b"]) @ x)) / len(frozen)

        traces.append(len(frozen))
        checkpoints, _ = selection.warm_up(
            jax.random.key(0), of_example, adapter, pool, optimizer=OPTIMIZER,
            learning_rate=SCHEDULE, num_examples=2, epochs=1, batch_size=2,
        )  # fmt: skip
        options: Any = {"sketch": None, "direction": "gradient"}
        rows = selection.less_features(of_example, checkpoints, pool, **options)
        return checkpoints.params, rows

    def adapter_of(n):
        return {"a": jnp.ones((n, 1)), "b": jnp.ones((1, 4)) / 8}

    pool = jax.random.normal(jax.random.key(1), (3, 4))
    program = found.lower(adapter_of(50_000), shapes, pool).as_text()
    assert len(program) < 200_000  # of 200,000 numbers eight letters each would be more
    frozen = jax.random.normal(jax.random.key(2), (2, 6, 4))
    results = [found(adapter_of(6), x, pool) for x in frozen]
    assert traces == [50_000, 6]
    columns = np.asarray(pool).T
    for x, (params, rows) in zip(np.asarray(frozen), results):
        a, b = (np.asarray(params[name][0]) for name in "ab")
        assert np.all(abs(a - 1) > 1e-3)
        slope = 1 - np.tanh((x + a @ b) @ columns) ** 2
        wanted = np.concatenate([slope * (b @ columns), a.T @ slope * columns]) / 6
        np.testing.assert_allclose(rows[0].T, wanted, rtol=1e-4, atol=1e-6)


# ---- scores ------------------------------------------------------------------------------


@pytest.mark.parametrize("mean", ["gradient", "cosine"])
@pytest.mark.parametrize("subtasks", [None, SUBTASKS])
def test_scores_are_their_formula(made, mean, subtasks):
    checkpoints, train, validation = made
    rates = checkpoints.learning_rates
    options = {"validation_mean": mean, "subtasks": subtasks}
    found = selection.less_scores(train, validation, rates, **options)
    ids = np.zeros(6, int) if subtasks is None else subtasks
    np.testing.assert_allclose(found, by_hand(train, validation, rates, ids, mean), atol=1e-5)
    if subtasks is not None:
        traced = jax.jit(
            lambda *args: selection.less_scores(
                *args[:3], subtasks=args[3], num_subtasks=4, validation_mean=mean
            )
        )(train, validation, rates, subtasks)  # the fourth has no example, and no say
        np.testing.assert_allclose(traced, found, atol=1e-6)


def test_inner_products(made):
    checkpoints, train, validation = made
    rates = checkpoints.learning_rates
    found = selection.less_scores(train, validation, rates, subtasks=SUBTASKS, metric="dot")
    wanted = by_hand(train, validation, rates, SUBTASKS, metric="dot")
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


def test_without_a_sketch_it_is_tracing_adam_exactly(task, made):
    """Cosines of directions written down, checkpoint by checkpoint, as in the released code."""
    _, pool, validation = task
    checkpoints = made[0]
    features = functools.partial(selection.less_features, loss, checkpoints, sketch=None)
    found = selection.less_scores(
        features(pool, **RELEASED),
        features(validation, direction="gradient"),
        checkpoints.learning_rates,
    )
    scores = []
    for c in range(3):
        params, moments, rate = at(checkpoints, c)
        g, mu, nu = (
            flat(x)
            for x in (
                gradients_of(params, pool),
                *(jax.tree.map(lambda x: x[None], x) for x in moments[:2]),
            )
        )
        ours = (0.9 * mu + 0.1 * g) / np.sqrt(0.999 * nu + 0.001 * g**2 + 1e-8)
        target = flat(gradients_of(params, validation)).mean(0)
        scores.append(float(rate) * unit(ours) @ unit(target))
    np.testing.assert_allclose(found, np.sum(scores, 0), atol=1e-4)


def test_what_changes_scores_and_what_does_not(task, made):
    params, (x, y, weight), validation = task
    checkpoints = made[0]
    rates = checkpoints.learning_rates
    features = functools.partial(features_of, checkpoints)
    # Example 1 is example 0 once more, 2 has all its tokens masked, 3 has a loss 1000 times as big.
    x, y = x.at[1].set(x[0]), y.at[1].set(y[0])
    plain, changed = (x, y, weight), (x, y, weight.at[2].set(0.0).at[3].set(1e3))
    target = features(validation, direction="gradient")
    score = functools.partial(selection.less_scores, validation=target, learning_rates=rates)
    adam = score(features(changed))
    sgd, scaled = (score(features(b, direction="gradient")) for b in (plain, changed))
    np.testing.assert_allclose(adam[0], adam[1], rtol=1e-6)
    assert adam[2] == scaled[2] == 0
    np.testing.assert_allclose(sgd[3], scaled[3], rtol=1e-4)
    assert abs(adam[3] - score(features(plain))[3]) > 1e-3 * abs(adam[3])
    order = np.random.default_rng(0).permutation(32)
    mixed = features(jax.tree.map(lambda v: v[order], changed))
    np.testing.assert_allclose(score(mixed), adam[order], atol=1e-6)
    # A louder validation example sways the mean of gradients, not that of cosines.
    louder = target.at[:, 0].multiply(50.0)
    for mean, same in (("gradient", False), ("cosine", True)):
        pair = [
            selection.less_scores(features(plain), t, rates, validation_mean=mean)
            for t in (target, louder)
        ]
        assert np.allclose(*pair, atol=1e-5) == same


def test_nan_stays_where_it_is(made):
    checkpoints, train, validation = made
    rates = checkpoints.learning_rates
    scores = selection.less_scores(train.at[0, 3, 0].set(jnp.nan), validation, rates)
    assert np.flatnonzero(np.isnan(scores)).tolist() == [3]
    with pytest.raises(ValueError, match="Expected scores without NaN, got 1"):
        selection.select_top_fraction(scores, 0.5)
    last = jax.jit(lambda s: selection.select_top_fraction(s, 1.0))(scores)
    assert int(last[-1]) == 3


def test_a_store_selects_the_same(task, made, tmp_path):
    _, pool, _ = task
    checkpoints, train, validation = made
    kept = store.create_store(tmp_path / "store", dim=64, shard_size=8)
    names = [f"epoch-{c}" for c in range(3)]
    for c, name in enumerate(names):
        params, moments, _ = at(checkpoints, c)

        def rows_of(start, stop, params=params, moments=moments):
            part = jax.tree.map(lambda x: x[start:stop], pool)
            return gradients.gradient_features(
                loss, params, part, sketch=SKETCH, direction="adam", moments=moments
            )

        kept.fill(rows_of, num_examples=32, checkpoint=name)
    rates = np.asarray(checkpoints.learning_rates)
    options = {"checkpoints": names, "weights": rates.tolist(), "largest_of_queries": True}
    for mean in ("gradient", "cosine"):
        scores = selection.less_scores(
            train, validation, rates, subtasks=SUBTASKS, validation_mean=mean
        )
        wanted = selection.select_top_fraction(scores, 0.25)
        queries = selection.less_queries(validation, subtasks=SUBTASKS, validation_mean=mean)
        found = kept.top_k(queries, 8, metric="normalized", **options)
        np.testing.assert_array_equal(np.ravel(found.indices), wanted)
        factor = 1.0 if mean == "gradient" else rates.sum()
        np.testing.assert_allclose(
            np.ravel(found.scores), factor * np.asarray(scores)[wanted], rtol=1e-4
        )


# ---- the pipeline ------------------------------------------------------------------------


def test_pipeline_on_a_mesh(task, made, mesh):
    params, pool, validation = task
    checkpoints, train, target = made
    options = {
        "optimizer": OPTIMIZER,
        "learning_rate": SCHEDULE,
        "sketch": SKETCH,
        "subtasks": SUBTASKS,
        "fraction": 0.125,
        "warm_up_fraction": 0.25,
        "epochs": 3,
        "batch_size": 8,
        "feature_batch_size": 8,
    }
    run = lambda pool, **more: selection.less(
        jax.random.key(2), loss, params, pool, validation, **options, **more
    )
    one = run(pool)
    rates = checkpoints.learning_rates
    scores = selection.less_scores(train, target, rates, subtasks=SUBTASKS)
    np.testing.assert_allclose(one.scores, scores, atol=1e-6)
    assert one.indices.tolist() == np.argsort(-np.asarray(scores), kind="stable")[:4].tolist()
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    several = run(jax.device_put(pool, sharding), sharding=sharding)
    np.testing.assert_allclose(several.scores, one.scores, atol=1e-5)
    assert several.indices.tolist() == one.indices.tolist()


def test_how_many_are_selected():
    scores = jnp.arange(4000.0)
    assert len(selection.select_top_fraction(scores, 0.05)) == 200
    assert selection.select_top_fraction(scores[:3], 0.01).tolist() == [2]
    assert selection.select_top_fraction(jnp.zeros(4), 0.5).tolist() == [0, 1]


def test_bad_input(task, made):
    params, pool, _ = task
    _, train, validation = made
    scores = functools.partial(selection.less_scores, train)
    ones = np.ones(3, np.float32)
    with pytest.raises(ValueError, match="same checkpoints and dimension"):
        scores(validation[:, :, :3], ones)
    with pytest.raises(ValueError, match="same checkpoints and dimension"):
        scores(validation[:2], ones)
    with pytest.raises(ValueError, match="Expected train to hold an example"):
        selection.less_scores(train[:, :0], validation, ones)
    with pytest.raises(ValueError, match="Expected 3 learning_rates"):
        scores(validation, ones[:2])
    for rates in ([0, 0, 0], [1, 1, -1], [1, 1, np.inf]):
        with pytest.raises(ValueError, match="finite learning_rates that are >= 0 and not all ze"):
            scores(validation, np.array(rates, np.float32))
    with pytest.raises(TypeError, match="validation of floating-point numbers, got dtype int32"):
        scores(np.ones(validation.shape, np.int32), ones)
    with pytest.raises(TypeError, match="validation of floating-point numbers, got dtype int32"):
        selection.less_queries(np.ones(validation.shape, np.int32))
    with pytest.raises(ValueError, match="Expected subtasks from 0 to 3, each with an example"):
        scores(validation, ones, subtasks=SUBTASKS, num_subtasks=4)
    with pytest.raises(ValueError, match="each with an example"):
        scores(validation, ones, subtasks=SUBTASKS, num_subtasks=2)
    with pytest.raises(ValueError, match=r"subtasks of shape \(6,\)"):
        scores(validation, ones, subtasks=SUBTASKS[:4])
    with pytest.raises(ValueError, match="num_subtasks where subtasks are traced"):
        jax.jit(lambda s: scores(validation, ones, subtasks=s))(SUBTASKS)
    with pytest.raises(ValueError, match="validation_mean to be one of"):
        scores(validation, ones, validation_mean="mean")
    with pytest.raises(ValueError, match="validation_mean='gradient' with metric='dot'"):
        scores(validation, ones, validation_mean="cosine", metric="dot")
    for fraction in (0.0, 1.5):
        with pytest.raises(ValueError, match=r"fraction in \(0, 1\]"):
            selection.select_top_fraction(jnp.ones(3), fraction)
        with pytest.raises(ValueError, match=r"fraction in \(0, 1\]"):
            warm_up(jax.random.key(0), params=params, pool=pool, fraction=fraction)
    counts: list[Any] = [0, 33, 3.7]
    for count in counts:
        with pytest.raises(ValueError, match=f"an integer from 1 to 32, got {count}"):
            warm_up(jax.random.key(0), params=params, pool=pool, num_examples=count)
    for name, value in (("batch_size", 0), ("batch_size", 2.7), ("epochs", 1.5)):
        options = {"params": params, "pool": pool, name: value}
        with pytest.raises(ValueError, match=f"{name} to be a positive integer, got {name}="):
            warm_up(jax.random.key(0), **options)
    falls_below = optax.linear_schedule(0.1, -0.1, 9)
    for rate, match in (
        (falls_below, "finite and >= 0, got -0.0.* at step 5"),
        (-0.1, "got -0.1"),
        (np.inf, "got inf"),
    ):
        with pytest.raises(ValueError, match=match):
            warm_up(
                jax.random.key(0), params=params, pool=pool, learning_rate=rate, num_examples=32
            )
    with pytest.raises(ValueError, match="at least one score"):
        selection.select_top_fraction(jnp.ones(0), 0.5)


def never(params, example):
    raise AssertionError("The training began.")


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"validation_mean": "mean"}, "validation_mean to be one of"),
        ({"fraction": 2.0}, r"fraction in \(0, 1\], got fraction=2.0"),
        ({"warm_up_fraction": 5}, r"warm_up_fraction in \(0, 1\], got warm_up_fraction=5"),
        ({"fraction": True}, r"fraction to be a number in \(0, 1\], got True"),
        ({"optimizer": optax.adam}, r"optimizer of optax, such as optax.adam\(1e-3\), got adam"),
        ({"subtasks": SUBTASKS[:4]}, r"subtasks of shape \(6,\)"),
        ({"num_subtasks": 4}, "subtasks from 0 to 3, each with an example"),
        ({"optimizer": optax.sgd(0.1)}, "one optax.ScaleByAdamState, got 0"),
        ({"learning_rate": 0.0}, "learning_rate > 0"),
        ({"b1": 1.0}, r"b1 in \[0, 1\)"),
        ({"feature_batch_size": 2.5}, "feature_batch_size to be a positive integer, got 2.5"),
        ({"sketch": 64}, "Expected a sketch"),
    ],
)
def test_bad_options_are_found_before_the_training(task, options, match):
    params, pool, validation = task
    given = {"optimizer": OPTIMIZER, "learning_rate": SCHEDULE, "sketch": SKETCH, "batch_size": 8}
    given |= {"subtasks": SUBTASKS} | options
    with pytest.raises((ValueError, TypeError), match=match):
        selection.less(jax.random.key(0), never, params, pool, validation, **given)


def test_which_examples_are_wrong(task):
    params, pool, validation = task
    given = {"optimizer": OPTIMIZER, "learning_rate": SCHEDULE, "sketch": SKETCH, "batch_size": 8}
    run = functools.partial(selection.less, jax.random.key(0), never, params, **given)
    with pytest.raises(ValueError, match="Expected validation to have the tree structure of pool"):
        run(pool, validation[0])
    with pytest.raises(ValueError, match="Expected pool with one leading axis of at least one"):
        run(jax.tree.map(lambda x: x[:0], pool), validation)
    with pytest.raises(ValueError, match="Expected validation with one leading axis"):
        run(pool, jax.tree.map(lambda x: x[:0], validation))
