"""Rank correlations along the last axis, and how far they can be trusted."""

import numpy as np


def ranks(values):
    """Ranks along the last axis, ties sharing their mean, minus the mean rank."""
    below = (values[..., None, :] < values[..., :, None]).sum(-1)
    equal = (values[..., None, :] == values[..., :, None]).sum(-1)
    found = below + 0.5 * equal
    return found - found.mean(-1, keepdims=True)


def cosine(a, b):
    """``<a, b> / |a| |b|`` along the last axis; NaN where one is zero."""
    with np.errstate(invalid="ignore"):
        return (a * b).sum(-1) / np.sqrt((a**2).sum(-1) * (b**2).sum(-1))


def spearman(a, b):
    """Spearman's rho; NaN where one is constant."""
    return cosine(ranks(a), ranks(b))


def kendall(a, b):
    """Kendall's tau-b; NaN where one is constant."""
    a, b = (np.sign(x[..., None, :] - x[..., :, None]) for x in (a, b))
    return cosine(a.reshape(*a.shape[:-2], -1), b.reshape(*b.shape[:-2], -1))


def partial_kendall(a, b, c):
    """Kendall's tau of ``a`` and ``b`` given ``c``."""
    ab, ac, bc = kendall(a, b), kendall(a, c), kendall(b, c)
    with np.errstate(invalid="ignore", divide="ignore"):
        return (ab - ac * bc) / np.sqrt((1 - ac**2) * (1 - bc**2))


def interval(statistic, num, draws=2000):
    """95 % bootstrap interval of ``statistic(indices)``, an index set of ``num`` items a row."""
    found = statistic(np.random.RandomState(0).randint(num, size=(draws, num)))
    found = found[np.isfinite(found)]
    # A draw may be constant; where most are, nothing can be said.
    return np.percentile(found, (2.5, 97.5)) if 2 * len(found) > draws else np.full(2, np.nan)


def mean_interval(values):
    """95 % bootstrap interval of the mean of all values that are not NaN."""
    flat = values[np.isfinite(values)]
    if not len(flat):
        return np.full(2, np.nan)
    return interval(lambda i: flat[i].mean(-1), len(flat))
