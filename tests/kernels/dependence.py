"""The measures of dependence by their definitions, dense, in float64; and data to try them on."""

import numpy as np

I = np.arange(12.0)
X1, Y1 = np.sin(I), np.cos(2 * I) + 0.3 * np.sin(I)
X = np.stack([np.sin(I), np.cos(3 * I)], axis=1)
Y = np.stack([np.sin(I) * np.cos(I), np.cos(I + 1), np.sin(2 * I)], axis=1)


def rows(x):
    x = np.asarray(x, np.float64)
    return x.reshape(len(x), -1)


def distances(x, y=None):
    x, y = rows(x), rows(x if y is None else y)
    return np.sqrt(np.sum((x[:, None] - y[None]) ** 2, axis=-1))


def gaussian(x, y=None, bandwidth=1.0):
    return np.exp(-(distances(x, y) ** 2) / (2 * bandwidth**2))


def linear(x, y=None):
    return rows(x) @ rows(x if y is None else y).T


def centered(K, unbiased=False):
    n = len(K)
    if not unbiased:
        H = np.eye(n) - 1 / n
        return H @ K @ H
    K = K - np.diag(np.diag(K))
    sums = K.sum(1)
    A = K - sums[:, None] / (n - 2) - sums[None] / (n - 2) + K.sum() / ((n - 1) * (n - 2))
    return A - np.diag(np.diag(A))


def pairs(n, unbiased):
    return n * (n - 3) if unbiased else n * n


def hsic(K, L, unbiased=False):
    """The formulas with traces, not those with centered sums."""
    n = len(K)
    if not unbiased:
        H = np.eye(n) - 1 / n
        return np.trace(K @ H @ L @ H) / (n - 1) ** 2
    K, L, one = K - np.diag(np.diag(K)), L - np.diag(np.diag(L)), np.ones(n)
    whole = (one @ K @ one) * (one @ L @ one) / ((n - 1) * (n - 2))
    return (np.trace(K @ L) + whole - 2 / (n - 2) * one @ K @ L @ one) / (n * (n - 3))


def dcov(x, y, unbiased=False):
    A, B = (centered(distances(z), unbiased) for z in (x, y))
    return np.sum(A * B) / pairs(len(A), unbiased)


def joint(variables, offset=1.0, unbiased=False):
    product = np.prod([centered(-distances(v), unbiased) + offset for v in variables], axis=0)
    n, power = len(product), offset ** len(variables)
    if unbiased:
        return np.sum(product) / (n * (n - 3)) - power * n / (n - 3)
    return np.mean(product) - power


def mmd(kernel, x, y, unbiased=False):
    Kx, Ky, Kxy = kernel(x), kernel(y), kernel(x, y)
    n, m = Kxy.shape
    if unbiased:
        within = (Kx.sum() - np.trace(Kx)) / (n * (n - 1)) + (Ky.sum() - np.trace(Ky)) / (
            m * (m - 1)
        )
    else:
        within = Kx.mean() + Ky.mean()
    return within - 2 * Kxy.mean()
