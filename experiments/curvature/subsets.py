"""Every set of so many layers, as a control of the set that a rule chose."""

import itertools

import numpy as np


def masks(num_layers, size):
    """Every set of ``size`` layers: ``[sets, layers]``."""
    sets = list(itertools.combinations(range(num_layers), size))
    return np.array([[layer in chosen for layer in range(num_layers)] for chosen in sets])


def masks_like(chosen):
    """Every set of as many layers as ``chosen [S, R, L]`` has."""
    return masks(chosen.shape[-1], int((chosen[0, 0] > 0.5).sum()))


def means(chosen, values):
    """Means of ``values [S, R, A, L]`` over the layers of every set: ``[sets, S, R, A]``."""
    sets = masks_like(chosen)
    return np.einsum("sral,nl->nsra", values, sets / sets.sum(-1, keepdims=True))


def split(chosen, values):
    """Of ``values [sets, S, R, ...]``: those of the chosen set, and the mean of the others'."""
    own = (masks_like(chosen)[:, None, None] == (chosen > 0.5)).all(-1)
    own = own.reshape(*own.shape, *[1] * (values.ndim - 3))
    others = np.where(own, 0, values).sum(0) / (len(values) - 1)
    return np.where(own, values, 0).sum(0), others
