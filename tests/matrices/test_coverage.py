"""How each parameter's gradients are kept: an upgrade that forms what was factored fails here.

Only tracing, nothing is compiled. A matrix (or larger array) of a model must be kept as a sum of
products, with looked-up rows where `ROWS` says so, unless `FORMED` names it. Whoever teaches the
engine to factor one of those removes it from the table.
"""

import jax
import pytest

from tests.matrices import oracle, zoo
from tests.matrices.models import attention, convolution

# Added to the activations, so that their gradient is the cotangent itself.
ADDED = ("bias", "scale", "position", "token", "norm/weight")

# Kernels formed by shifted products, because the maps are larger than the kernel.
FORMED = {
    **{name: {"kernel"} for name in convolution.MODELS if name.startswith("conv_")},
    "conv_2d_late": set(),
    "conv_transposed": {"down", "same", "up"},
    "small_cnn": {"first"},
    "images_per_example": {"kernel"},
    "linen_resnet_block": {"Conv_2/kernel"},
    "linen_unet": {"ConvTranspose_0/kernel", "Conv_0/kernel", "Conv_2/kernel", "Conv_3/kernel"},
    "equinox_images": {"first/weight"},
    # The same for all examples, added to a product.
    "penalized": {"w"},
    # Multiplied by something that runs along both sides, or whose own gradient reads the product.
    "scaled_weights": {"columns", "direction", "learned", "masked", "triangle"},
    "custom_rules": {"manual"},
    # Parts that are not whole rows or columns, entries, reversed or padded axes.
    "scalar_lookup": {"cut", "entry"},
    "sliced": {"flipped", "padded", "strided"},
    "concatenated": {"first", "part", "second", "whole"},
    "triangular": {"on"},
    # A parameter that is changed in the loop; branches under vmap.
    "read_and_written_carry": {"fast"},
    "branches": {"both", "no", "switch/0", "switch/1", "yes"},
    # Nothing to factor.
    "reshaped": {"empty"},
    "spectral": {"mix"},
    "linear_algebra": {"skew", "stochastic"},
    "distances": {"centers", "landmarks"},
    # Looked up one token at a time, then multiplied.
    "equinox_experts": {"embedding/weight"},
}
ROWS = {
    **{name: {"embedding"} for name in attention.MODELS if name.startswith("transformer")},
    "mixture_of_experts": {"gathered"},
    "embeddings": {"bag", "positions", "segments", "tokens"},
    "tied_embedding": {"columns", "table"},
    "scalar_lookup": {"column", "deep", "row", "taken"},
    "lookup_modes": {"clip", "fill", "promise", "wrap"},
    "lstm": {"embedding"},
    "nnx_transformer": {"embed/embedding"},
    "linen_decoder": {"Embed_0/embedding"},
}


def traced(model, **options):
    """The leaves of a model's matrix."""
    return jax.eval_shape(
        lambda *args: oracle.matrix(model._replace(args=args), **options), *model.args
    ).leaves


@pytest.mark.parametrize("name", [*zoo.PLAIN, *zoo.NNX, *zoo.LINEN, *zoo.EQUINOX])
def test_matrices_are_factored(name):
    leaves = zoo.case(name).leaves
    kinds = {leaf.path: {term.kind for term in leaf.terms} for leaf in leaves}
    formed = {
        leaf.path
        for leaf in leaves
        if "dense" in kinds[leaf.path]
        and len(leaf.shape) > 1
        and not leaf.path.endswith(("_bias", *ADDED))
    }
    assert formed == FORMED.get(name, set())
    rows = {path for path, found in kinds.items() if "rows" in found}
    assert rows - {"sorted"} == ROWS.get(name, set())
    for leaf in leaves:
        assert leaf.reason


def test_terms_of_a_transformer():
    """Every kind of term in one model, leaf by leaf."""
    leaves = traced(attention.transformer(tied=True, scan=True, remat=True))
    kinds = {leaf.path: [term.kind for term in leaf.terms] for leaf in leaves}
    assert sorted(kinds["embedding"]) == ["outer", "rows"]
    for name in ("query", "key", "value", "out", "up", "down"):
        assert kinds[f"blocks/{name}"] == ["outer"]
    for name in ("up_bias", "norm1/scale", "norm2/bias"):
        assert kinds[f"blocks/{name}"] == ["dense"]


def test_shared_uses_become_several_terms():
    leaves = {leaf.path: leaf for leaf in zoo.case("shared_weight").leaves}
    assert len(leaves["square"].terms) == 3
    assert len(leaves["tied"].terms) == 2


def test_long_sequences_are_formed():
    """Factors are kept where T (I + O) < I O; both sides of the crossover."""
    for length, kind in ((2, "outer"), (64, "dense")):
        leaves = {leaf.path: leaf for leaf in traced(attention.transformer(length=length))}
        assert leaves["blocks/0/up"].terms[0].kind == kind


def test_factors_are_stored_once():
    """Query, key and value read one activation; input and hidden weights share a cotangent."""
    leaves = {leaf.path: leaf for leaf in zoo.case("transformer_scan").leaves}
    read = {leaves[f"blocks/{name}"].terms[0].a.index for name in ("query", "key", "value")}
    assert len(read) == 1
    leaves = {leaf.path: leaf for leaf in zoo.case("lstm").leaves}
    assert leaves["input"].terms[0].d.index == leaves["hidden"].terms[0].d.index
