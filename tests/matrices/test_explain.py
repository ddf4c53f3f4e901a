"""`explain` says what is kept and what it costs; on a transformer everything large is factored."""

import jax
import jax.numpy as jnp
import pytest

import gradkin
from tests.matrices import oracle
from tests.matrices.models import attention


def explained(model, **options):
    trace = lambda *args: oracle.matrix(model._replace(args=args), **options)
    return jax.eval_shape(trace, *model.args).explain()


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("scan", [True, False], ids=["scan", "loop"])
@pytest.mark.parametrize("remat", [True, False], ids=["remat", "plain"])
def test_every_large_leaf_of_a_transformer_is_factored(tied, scan, remat):
    model = attention.transformer(
        d=64, heads=4, length=16, vocabulary=200, tied=tied, scan=scan, remat=remat
    )
    rows = explained(model).rows
    large = [row for row in rows if row.path.split("/")[-1] in LARGE]
    assert len(large) == (7 if scan else 13) + (not tied)
    for row in large:
        assert row.route == "factors", row
        assert row.numbers < jnp.prod(jnp.asarray(row.shape))
        assert all(term.startswith(("Outer", "Rows")) for term in row.terms)
    biggest_formed = max(row.numbers for row in rows if row.route == "formed")
    assert biggest_formed <= 16 * 64  # the positions, which are added


LARGE = ("query", "key", "value", "out", "up", "down", "embedding", "head")


def test_numbers_of_one_layer():
    """A layer of 6 inputs and 5 outputs seen at 2 positions."""

    def loss(params, x):
        return jnp.sum(jnp.tanh(x @ params["w"]) + jnp.broadcast_to(params["b"], (2, 5)))

    params = {"w": jnp.ones((6, 5)), "b": jnp.zeros(5), "unused": jnp.zeros(3)}
    G = gradkin.per_example_grads(loss)(params, jnp.ones((4, 2, 6)))
    b, unused, w = G.explain().rows
    assert (b.path, b.terms, b.route, b.numbers, b.shape) == ("b", ("Dense",), "formed", 5, (5,))
    assert (unused.terms, unused.route, unused.numbers) == ((), "none", 0)
    assert w.terms == ("Outer(6 x 5, T=2)",)
    assert w.numbers == 2 * (6 + 5)
    assert w.multiply_adds == 2 * 2 * (6 + 5)
    assert w.reason == "22 numbers in the factors instead of 30"


def test_text():
    model = attention.transformer(tied=True, scan=True)
    text = str(explained(model))
    lines = text.splitlines()
    assert lines[0].split()[:3] == ["parameter", "shape", "terms"]
    assert len(lines) == 2 + len(jax.tree.leaves(model.args[0]))
    line = next(line for line in lines if line.startswith("embedding"))
    assert "Outer(24 x 16, T=4)" in line
    assert "Rows(24 x 16, T=4)" in line
    assert "2 x " in next(line for line in lines if line.startswith("blocks/up "))
    assert "3 examples" in lines[-1]


def test_only_selected_leaves():
    G = oracle.matrix(attention.transformer())
    chosen = G.select(lambda path: path.endswith("up")).explain()
    assert [row.path for row in chosen.rows] == ["blocks/0/up", "blocks/1/up"]


def test_route_is_obeyed():
    model = attention.transformer()
    assert all(row.route != "factors" for row in explained(model, route="dense").rows)
    kept = {row.path for row in explained(model, route="factors").rows if row.route == "factors"}
    assert "blocks/0/up" in kept
