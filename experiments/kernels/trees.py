"""Trees that scikit-learn grows on the host, while an experiment runs."""

import functools

import jax
import numpy as np

from gradkin import kernels


def forest(key, x, y, query, **options):
    """Leaves ``[n, trees]`` and ``[q, trees]`` of a random forest, and counts ``[n, trees]``."""
    shape = lambda points, dtype: jax.ShapeDtypeStruct((len(points), options["trees"]), dtype)
    shapes = shape(x, np.int32), shape(query, np.int32), shape(x, np.float32)
    return jax.pure_callback(
        functools.partial(forest_leaves, **options), shapes, seeds(key), x, y, query
    )


def predictions(key, x, outcomes, query, **options):
    """``[refits, 2, q]``: a forest is fitted to each of ``outcomes [refits, n]``.

    Predictions are those of its first tree and those of the forest.
    """
    shape = jax.ShapeDtypeStruct((len(outcomes), 2, len(query)), np.float32)
    host = functools.partial(refit_predictions, **options)
    return jax.pure_callback(host, shape, seeds(key, (len(outcomes),)), x, outcomes, query)


def boosted(key, x, y, query, **options):
    """Leaves ``[n, rounds]`` and ``[q, rounds]`` of trees boosted from zero."""
    shapes = tuple(
        jax.ShapeDtypeStruct((len(points), options["rounds"]), np.int32) for points in (x, query)
    )
    host = functools.partial(boosted_leaves, **options)
    return jax.pure_callback(host, shapes, seeds(key), x, y, query)


def seeds(key, shape=()):
    """Seeds for scikit-learn."""
    return jax.random.randint(key, shape, 0, 2**31 - 1)


def fitted(seed, x, y, *, trees, leaves, max_features=1 / 3, bootstrap=False):
    """A random forest; with as many leaves as points, its trees are fully grown."""
    from sklearn.ensemble import RandomForestRegressor

    model = RandomForestRegressor(
        trees,
        max_features=max_features,
        bootstrap=bootstrap,
        max_leaf_nodes=leaves if leaves < len(x) else None,
        random_state=int(seed),
    )
    return model.fit(np.asarray(x), np.asarray(y, np.float64))


def forest_leaves(seed, x, y, query, **options):
    """What `forest` returns."""
    model = fitted(seed, x, y, **options)
    ids = (model.apply(np.asarray(points)).astype(np.int32) for points in (x, query))
    return *ids, kernels.bootstrap_counts(model, len(x))


def refit_predictions(seeds, x, outcomes, query, **options):
    """What `predictions` returns."""
    found = []
    for seed, y in zip(np.asarray(seeds), np.asarray(outcomes)):
        model = fitted(seed, x, y, **options)
        both = (model.estimators_[0], model)
        found.append([one.predict(np.asarray(query)) for one in both])
    return np.asarray(found, np.float32)


def boosted_leaves(seed, x, y, query, *, rounds, learning_rate, leaves):
    """What `boosted` returns."""
    from sklearn.ensemble import GradientBoostingRegressor

    model = GradientBoostingRegressor(
        n_estimators=rounds,
        learning_rate=learning_rate,
        max_leaf_nodes=leaves,
        max_depth=None,  # type: ignore[arg-type]
        init="zero",
        random_state=int(seed),
    ).fit(np.asarray(x), np.asarray(y, np.float64))
    return tuple(model.apply(np.asarray(points)).astype(np.int32) for points in (x, query))


def tree_predictions(key, x, y, query):
    """``[q, outputs]``: predictions of one fully grown regression tree."""
    shape = jax.ShapeDtypeStruct((len(query), y.shape[1]), np.float32)
    return jax.pure_callback(fitted_tree_predictions, shape, seeds(key), x, y, query)


def fitted_tree_predictions(seed, x, y, query):
    """What `tree_predictions` returns."""
    from sklearn.tree import DecisionTreeRegressor

    model = DecisionTreeRegressor(random_state=int(seed)).fit(np.asarray(x), np.asarray(y))
    return model.predict(np.asarray(query)).astype(np.float32)
