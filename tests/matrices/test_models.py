"""Every verb equals vmap(grad) on every test model, with the factors kept."""

import pytest

from tests.matrices import oracle, zoo


@pytest.mark.parametrize("name", zoo.PLAIN)
def test_plain_functions(name):
    # bfloat16 rows are rounded to 8 bits in the oracle only.
    oracle.compare(zoo.case(name), tolerance=2e-2 if name == "half_precision" else 1e-5)


@pytest.mark.parametrize("name", zoo.NNX)
def test_flax_nnx(name):
    oracle.compare(zoo.case(name))


@pytest.mark.parametrize("name", zoo.LINEN)
def test_flax_linen(name):
    oracle.compare(zoo.case(name))


@pytest.mark.parametrize("name", zoo.EQUINOX)
def test_equinox(name):
    oracle.compare(zoo.case(name))


@pytest.mark.parametrize(
    ("name", "route"),
    [("mlp", "auto"), ("transformer_scan", "auto"), ("conv_2d_late", "dense"), ("lstm", "dense")],
)
def test_routes_agree(name, route):
    oracle.assert_exact(zoo.PLAIN[name](), route=route)
