"""Models written with Flax NNX, Flax Linen and Equinox, through each library's own recipe."""

import importlib

import jax
import pytest

from tests.matrices import oracle

NAMES = {
    "nnx": ["transformer", "scan", "lstm", "gru", "adapter", "tversky"],
    "linen": ["resnet_block", "vision_transformer", "unet", "decoder"],
    "equinox": ["mixer", "experts", "images", "gru"],
}


@pytest.mark.parametrize(
    "name", [f"{kind}_{name}" for kind, names in NAMES.items() for name in names]
)
def test_verbs_equal_vmap_grad(name):
    kind = name.split("_")[0]
    pytest.importorskip({"nnx": "flax", "linen": "flax", "equinox": "equinox"}[kind])
    models = importlib.import_module(f"tests.matrices.models.{kind}_models").MODELS
    # The libraries add biases by rank promotion.
    with jax.numpy_rank_promotion("allow"):
        oracle.assert_exact(models[name](), route="factors")
