"""Curvature by PyHessian and by curvlinops, of the same network in PyTorch.

PyHessian's density calls `torch.eig`, which PyTorch no longer has; its place is taken by
`torch.linalg.eig` here, so that its Lanczos iteration can be timed at all. PyHessian's loss is
prepared, as it is meant, once for all products.

    python -m experiments.benchmarks.peers.torch_curvature JOB [--tiny]
"""

import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from experiments.benchmarks.worker import serve

PRODUCTS = 50


class Problem(NamedTuple):
    """Weights ``[inputs, outputs]`` of dense layers, data, and a vector per weight."""

    weights: list[np.ndarray]
    vectors: list[np.ndarray]
    inputs: np.ndarray
    labels: np.ndarray


def problem(*, tiny: bool) -> Problem:
    """The same numbers under every library; biases and their part of the vector are zero."""
    sizes, batch = ((6, 8, 3), 4) if tiny else ((64, 128, 128, 10), 256)
    numbers = np.random.default_rng(0)
    shapes = list(zip(sizes, sizes[1:], strict=False))
    weights = [numbers.normal(size=s).astype(np.float32) / np.float32(s[0] ** 0.5) for s in shapes]
    vectors = [numbers.normal(size=s).astype(np.float32) for s in shapes]
    inputs = numbers.normal(size=(batch, sizes[0])).astype(np.float32)
    return Problem(weights, vectors, inputs, numbers.integers(sizes[-1], size=batch))


def build(job: str, tiny: bool) -> tuple[Callable[[], Any], dict[str, Any]]:
    """Return the step of a job and what there is to say about it."""
    import importlib.metadata

    import torch
    from torch import nn

    given = problem(tiny=tiny)
    layers: list[Any] = []
    for weight in given.weights:
        layer = nn.Linear(*weight.shape)
        layer.weight.data = torch.tensor(weight.T.copy())
        layer.bias.data.zero_()
        layers += [layer, nn.Tanh()]
    model = nn.Sequential(*layers[:-1])
    x, y = torch.tensor(given.inputs), torch.tensor(given.labels)
    criterion = nn.CrossEntropyLoss()
    parameters = list(model.parameters())
    vector = [v for w in given.vectors for v in (torch.tensor(w.T.copy()), torch.zeros(w.shape[1]))]
    packages = ["torch"]
    products = min(PRODUCTS, 5) if tiny else PRODUCTS

    def norm(tensors: Any) -> float:
        return sum(float((t.detach().double() ** 2).sum()) for t in tensors) ** 0.5

    step: Callable[[], Any]
    value: Callable[[Any], float] = norm
    if job == "plain":
        quantity = "gradient"
        step = lambda: torch.autograd.grad(criterion(model(x), y), parameters)
    elif job.startswith("PyHessian"):
        from pyhessian import hessian
        from pyhessian.utils import hessian_vector_product

        def eig(T: Any, eigenvectors: bool) -> Any:
            values, vectors = torch.linalg.eig(T)
            return torch.view_as_real(values), vectors.real

        torch.eig = eig  # type: ignore
        packages.append("PyHessian")
        H = hessian(model, criterion, data=(x, y), cuda=False)
        if job.endswith("product"):
            quantity = "Hessian-vector product"
            step = lambda: hessian_vector_product(H.gradsH, H.params, vector)
        elif job.endswith("Lanczos"):
            quantity = "largest eigenvalue"
            step = lambda: H.density(iter=products, n_v=1)
            value = lambda result: float(max(result[0][0]))
        else:
            quantity = "trace, PyHessian"
            step = lambda: H.trace(maxIter=products, tol=0.0)
            value = lambda result: float(np.mean(result))
    else:
        from curvlinops import GGNLinearOperator, HessianLinearOperator
        from curvlinops.papyan2020traces.spectrum import fast_lanczos

        packages.append("curvlinops-for-pytorch")
        make = GGNLinearOperator if "Gauss-Newton" in job else HessianLinearOperator
        A: Any = make(model, criterion, parameters, [(x, y)], check_deterministic=False)
        if job.endswith("Lanczos"):
            quantity = "largest eigenvalue"
            step = lambda: fast_lanczos(A, products)
            value = lambda result: float(result[0].max())
        else:
            quantity = f"{'Gauss-Newton' if 'Gauss' in job else 'Hessian'}-vector product"
            step = lambda: A @ vector
    return step, {
        "value": value(step()),
        "quantity": quantity,
        "threads": torch.get_num_threads(),
        "versions": {name: importlib.metadata.version(name) for name in packages},
    }


if __name__ == "__main__":
    _, job, *rest = sys.argv
    serve(lambda: build(job, bool(rest)))
