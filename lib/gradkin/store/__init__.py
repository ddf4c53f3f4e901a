"""Gradient features on disk: written by many processes, resumed after a kill, searched exactly.

Rows of floats of any origin; `tensorstore` is needed to read and write them (extra ``store``).
"""

from gradkin.store.gradient_store import GradientStore as GradientStore
from gradkin.store.gradient_store import create_store as create_store
from gradkin.store.gradient_store import open_store as open_store
from gradkin.store.layout import CorruptShardError as CorruptShardError
from gradkin.store.layout import Spec as Spec
from gradkin.store.model_zoo import ModelZoo as ModelZoo
from gradkin.store.model_zoo import open_zoo as open_zoo
from gradkin.store.model_zoo import save_zoo as save_zoo
from gradkin.store.top_k import TopK as TopK

__all__ = [
    "CorruptShardError",
    "GradientStore",
    "ModelZoo",
    "Spec",
    "TopK",
    "create_store",
    "open_store",
    "open_zoo",
    "save_zoo",
]
