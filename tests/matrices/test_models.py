"""Every verb equals vmap(grad) on every plain test model, with the factors kept."""

import pytest

from tests.matrices import oracle
from tests.matrices.models import (
    attention,
    convolution,
    dense,
    exotic,
    lookup,
    recurrent,
)

MODELS = {
    **dense.MODELS,
    **attention.MODELS,
    **lookup.MODELS,
    **recurrent.MODELS,
    **convolution.MODELS,
    **exotic.MODELS,
}


# Every verb on models whose leaves together hold every kind of term; elsewhere the verbs that the
# others are made of.
ALL_VERBS = {
    "mlp", "adapter", "shared_weight", "penalized", "unused_and_scalar", "two_arguments",
    "one_example", "transformer_scan_tied_remat", "embeddings", "tied_embedding", "nested_scans",
    "conv_2d_same", "sliced", "spectral", "half_precision",
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_verbs_equal_vmap_grad(name):
    # bfloat16 rows are rounded to 8 bits in the oracle only.
    tolerance = 2e-2 if name == "half_precision" else 1e-5
    read = oracle.verbs if name in ALL_VERBS else oracle.core_verbs
    oracle.assert_exact(MODELS[name](), route="factors", tolerance=tolerance, read=read)


@pytest.mark.parametrize("name", ["mlp", "transformer_scan_tied_remat", "conv_2d_late", "lstm"])
@pytest.mark.parametrize("route", ["auto", "dense"])
def test_routes_agree(name, route):
    oracle.assert_exact(MODELS[name](), route=route)
