"""Images as centered vectors of a chosen size, for networks without normalization."""

import jax
import numpy as np

from gradkin import data as datasets


def load(config):
    """Pixels minus the mean training image, scaled to the config's mean squared norm."""
    train, test = (datasets.load(config.data, split) for split in ("train", "test"))
    x, x_test = (datasets.images(split, flatten=True) for split in (train, test))
    mean = x.mean(0, keepdims=True)
    scale = np.sqrt(np.mean(np.sum((x - mean) ** 2, axis=1)) / config.squared_norm)
    inputs = {"x": (x - mean) / scale, "x_test": (x_test - mean) / scale}
    return inputs | {"y": train["label"], "y_test": test["label"]}


def data_spec(config):
    features, train, test = (64, 1438, 359) if config.data == "digits" else (784, 60_000, 10_000)
    return {
        "x": jax.ShapeDtypeStruct((train, features), np.float32),
        "x_test": jax.ShapeDtypeStruct((test, features), np.float32),
        "y": jax.ShapeDtypeStruct((train,), np.int32),
        "y_test": jax.ShapeDtypeStruct((test,), np.int32),
    }
