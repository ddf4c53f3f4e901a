"""The table of phases."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradkin import curvature

OPTIONS = {"loss_threshold": 0.1, "tolerance": 0.03, "similarity_threshold": 0.9}
TABLE = [
    (0.5, -0.2, 0.3, "I"),
    (0.5, -0.2, 0.99, "I"),
    (0.5, 0.0, 0.3, "II"),
    (0.5, 0.2, 0.99, "II"),
    (0.01, -0.2, 0.3, "III"),
    (0.01, -0.2, 0.99, "III"),
    (0.01, 0.0, 0.3, "IV-A"),
    (0.01, -0.03, 0.89, "IV-A"),
    (0.01, -0.03, 0.9, "IV-B"),
    (0.1, 0.2, 0.99, "IV-B"),
]


def test_truth_table():
    loss, mc, cka, names = zip(*TABLE)
    columns = [jnp.array(column) for column in (loss, mc, cka)]
    found = curvature.classify_phase(*columns, **OPTIONS)
    assert [curvature.PHASES[i] for i in found] == list(names)
    square = [jnp.stack([column, column]) for column in columns]
    jitted = jax.jit(lambda *columns: curvature.classify_phase(*columns, **OPTIONS))
    np.testing.assert_array_equal(jitted(*square), np.stack([found, found]))
    np.testing.assert_array_equal(
        jax.vmap(lambda *row: curvature.classify_phase(*row, **OPTIONS))(*columns), found
    )
    assert found.dtype == jnp.int32


def test_nan_is_no_phase():
    rows = jnp.array([[jnp.nan, 0.0, 0.5], [0.5, jnp.nan, 0.5], [0.5, 0.0, jnp.nan]])
    found = curvature.classify_phase(rows[:, 0], rows[:, 1], rows[:, 2], **OPTIONS)
    np.testing.assert_array_equal(found, -1)


def test_bad_input():
    with pytest.raises(ValueError, match="one shape"):
        curvature.classify_phase(jnp.ones(2), jnp.ones(3), jnp.ones(2), **OPTIONS)
    with pytest.raises(ValueError, match="tolerance"):
        curvature.classify_phase(
            jnp.ones(2), jnp.ones(2), jnp.ones(2), **(OPTIONS | {"tolerance": -1.0})
        )
