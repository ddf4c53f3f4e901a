"""All test models by name, each traced once for everything that is checked on it."""

import contextlib
import functools
import importlib
from collections.abc import Iterator

import jax
import pytest

from tests.matrices import oracle
from tests.matrices.models import attention, convolution, dense, exotic, lookup, recurrent

PLAIN = {
    **dense.MODELS,
    **attention.MODELS,
    **lookup.MODELS,
    **recurrent.MODELS,
    **convolution.MODELS,
    **exotic.MODELS,
}
NNX = (
    "nnx_transformer",
    "nnx_scan",
    "nnx_lstm",
    "nnx_gru",
    "nnx_adapter",
    "nnx_tversky",
)
LINEN = ("linen_resnet_block", "linen_vision_transformer", "linen_unet", "linen_decoder")
EQUINOX = ("equinox_mixer", "equinox_experts", "equinox_images", "equinox_gru")

# Every verb on models whose leaves together hold every kind of term; elsewhere the verbs that the
# others are made of.
ALL_VERBS = {
    "mlp", "adapter", "shared_weight", "penalized", "unused_and_scalar", "two_arguments",
    "one_example", "transformer_scan_tied_remat", "embeddings", "tied_embedding", "nested_scans",
    "conv_2d_same", "sliced", "spectral", "half_precision",
}  # fmt: skip


@contextlib.contextmanager
def rules(name: str) -> Iterator[None]:
    """The rules of the session; the libraries add biases by rank promotion."""
    with jax.numpy_rank_promotion("raise" if name in PLAIN else "allow"):
        yield


@functools.cache
def case(name: str) -> oracle.Case:
    """The model with its factors kept, traced."""
    library = name.split("_")[0]
    if name in PLAIN:
        model = PLAIN[name]()
    else:
        pytest.importorskip("equinox" if library == "equinox" else "flax")
        models = importlib.import_module(f"tests.matrices.models.{library}_models")
        model = models.MODELS[name]()
    read = oracle.verbs if name in ALL_VERBS else oracle.core_verbs
    with rules(name):
        return oracle.trace(model, read=read, route="factors")
