"""Products with the Hessian and what is made of them, against a gradient and against PyTorch.

A perceptron 64-128-128-10 with tanh (26,122 parameters), cross-entropy, 256 rows. First, single
products: their ratio is to the plain gradient of the mean loss. Then 50 products each: a bare loop,
Lanczos with full re-orthogonalisation, Hutchinson's trace; their ratio is to PyHessian's same job.

    python -m experiments.benchmarks.curvature          # two cases, about three minutes
"""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from experiments.benchmarks import harness
from experiments.benchmarks.harness import Variant
from experiments.benchmarks.peers.torch_curvature import PRODUCTS, problem
from experiments.benchmarks.worker import serve

PEERS = harness.ROOT / ".venv-peers" / "bin" / "python"
MISSING = "PyHessian and curvlinops: make peers"
PLAIN = ("plain",)
# Each variant: its baseline.
CASES = {
    "one product": {
        "plain": (),
        "Hessian-vector product": PLAIN,
        "Gauss-Newton-vector product": PLAIN,
        "jvp of grad": PLAIN,
    },
    "50 products": {
        "loop": (),
        "Lanczos": ("PyHessian Lanczos",),
        "trace": ("PyHessian trace",),
    },
}
THEIRS = {
    "one product": {
        "PyTorch plain": (),
        "PyHessian product": ("PyTorch plain",),
        "curvlinops product": ("PyTorch plain",),
        "curvlinops Gauss-Newton product": ("PyTorch plain",),
    },
    "50 products": {"PyHessian Lanczos": (), "PyHessian trace": (), "curvlinops Lanczos": ()},
}
GOALS = {"Hessian-vector product": 3.0, "Lanczos": 0.1}


def build(job: str, tiny: bool) -> tuple[Callable[[], Any], dict[str, Any]]:
    """Compile a job; return its step and what there is to say about it."""
    import jax
    import jax.numpy as jnp

    import gradkin
    from experiments.benchmarks import compiled
    from gradkin import curvature

    given = problem(tiny=tiny)
    with_bias = lambda weights: [(jnp.asarray(w), jnp.zeros(w.shape[1])) for w in weights]
    params, vector = with_bias(given.weights), with_bias(given.vectors)
    batch = (jnp.asarray(given.inputs), jnp.asarray(given.labels, jnp.int32))
    products = min(PRODUCTS, 5) if tiny else PRODUCTS
    key = jax.random.key(0)

    def predict(params: Any, x: jax.Array) -> jax.Array:
        for weight, bias in params[:-1]:
            x = jnp.tanh(x @ weight + bias)
        weight, bias = params[-1]
        return x @ weight + bias

    def loss(params: Any, example: Any) -> jax.Array:
        return curvature.cross_entropy(predict(params, example[0]), example[1])

    def mean_loss(params: Any, batch: Any) -> jax.Array:
        x, labels = batch
        log = jax.nn.log_softmax(predict(params, x))
        return -jnp.mean(jnp.take_along_axis(log, labels[:, None], 1))

    hessian = gradkin.hessian(loss)
    gauss_newton = gradkin.gauss_newton(predict, curvature.cross_entropy)

    def loop(params: Any, batch: Any, vector: Any) -> Any:
        product = hessian(params, batch).linear_map()
        scaled = lambda v, _: (jax.tree.map(lambda x: 1e-2 * x, product(v)), None)
        return jax.lax.scan(scaled, vector, length=products)[0]

    jobs: dict[str, tuple[str, Callable[[Any, Any, Any], Any]]] = {
        "plain": ("gradient", lambda p, b, v: jax.grad(mean_loss)(p, b)),
        "jvp of grad": (
            "Hessian-vector product",
            lambda p, b, v: jax.jvp(lambda p: jax.grad(mean_loss)(p, b), (p,), (v,))[1],
        ),
        "Hessian-vector product": ("Hessian-vector product", lambda p, b, v: hessian(p, b) @ v),
        "Gauss-Newton-vector product": (
            "Gauss-Newton-vector product",
            lambda p, b, v: gauss_newton(p, *b) @ v,
        ),
        "loop": ("fiftieth product, scaled", loop),
        "Lanczos": (
            "largest eigenvalue",
            lambda p, b, v: hessian(p, b).top_eigenpairs(key, num_matvecs=products).values,
        ),
        "trace": (
            "trace, gradkin",
            lambda p, b, v: hessian(p, b).trace(key, num_matvecs=products).value,
        ),
    }
    quantity, fun = jobs[job]
    return compiled.build(fun, (params, batch, vector), quantity, ("jax", "jaxlib", "matfree"))


def variants(name: str, *, tiny: bool, python: Path) -> list[Variant]:
    """Ours and the peers'."""
    suffix = ("--tiny",) if tiny else ()
    command = (sys.executable, "-m", __spec__.name, "--worker")
    peer = (str(python), "-m", "experiments.benchmarks.peers.torch_curvature")
    ours = [Variant(job, (*command, job, *suffix), base) for job, base in CASES[name].items()]
    theirs = [
        Variant(job, (*peer, job.removeprefix("PyTorch "), *suffix), base, MISSING)
        for job, base in THEIRS[name].items()
    ]
    return ours + theirs


def main(arguments: Sequence[str] | None = None) -> int:
    given_arguments = list(sys.argv[1:] if arguments is None else arguments)
    if given_arguments[:1] == ["--worker"]:
        _, job, *rest = given_arguments
        serve(lambda: build(job, bool(rest)))
        return 0
    parser = harness.options(__doc__)
    parser.add_argument("--peers", type=Path, default=PEERS, help="Python of the peers")
    given = parser.parse_args(given_arguments)
    cases = {name: variants(name, tiny=given.tiny, python=given.peers) for name in CASES}
    return harness.run("curvature", cases, given, goals=GOALS)


if __name__ == "__main__":
    sys.exit(main())
