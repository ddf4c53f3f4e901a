"""Sketches of gradients: time and error for sizes ``k``, beside TRAK, dattri and bergson.

``rows``: sixteen vectors of 2^18 numbers that are already written down, projected to ``k``; ratios
are to TRAK's `BasicProjector` with signs (its faster one needs CUDA). ``transformer``: from a batch
of sixteen sequences to features, where some sketches never form a gradient; ratios are to the plain
gradient of the mean loss, bergson's to PyTorch's (of its untied model; it leaves out embeddings
and norms). Each row of the results also has the root mean square errors, over pairs
of examples, of inner products (in units of ``|g| |h|``) and of cosines; plain chance is
``1 / sqrt(k)``.

    python -m experiments.benchmarks.sketches          # five cases, about five minutes
"""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from experiments.benchmarks import harness
from experiments.benchmarks.harness import Variant
from experiments.benchmarks.peers.projectors import errors, rows
from experiments.benchmarks.worker import serve

PEERS = harness.ROOT / ".venv-peers" / "bin" / "python"
MISSING = "traker, dattri or bergson: make peers"
SKETCHES = (
    "Rademacher",
    "Gaussian",
    "Hadamard",
    "count",
    "sparse, 4",
    "Kronecker",
    "tensor",
)
# Dense normal numbers for each of three million parameters would measure the generator.
OF_MODELS = ("Rademacher", "Hadamard", "count", "Kronecker", "tensor")
THEIRS = ("TRAK rademacher", "TRAK normal", "dattri rademacher")
PLAIN = "plain gradient"
FORMED = "gradients written down"
FROM_LOSS = " from the loss"
BERGSON = ("plain gradient", "features")
CASES = {
    "rows, k = 256": 256,
    "rows, k = 1024": 1024,
    "rows, k = 4096": 4096,
    "transformer, k = 256": 256,
    "transformer, k = 1024": 1024,
}
GOALS = {"Rademacher": 0.5}


def make(job: str, size: int) -> Any:
    """The sketch of a variant."""
    import jax

    from gradkin import gradients

    kinds: dict[str, Any] = {
        "Rademacher": gradients.RademacherSketch,
        "Gaussian": gradients.GaussianSketch,
        "Hadamard": gradients.HadamardSketch,
        "count": gradients.CountSketch,
        "Kronecker": gradients.KroneckerSketch,
        "tensor": gradients.TensorSketch,
    }
    key = jax.random.key(0)
    if job.startswith("sparse"):
        return gradients.CountSketch(key, size, nonzeros=int(job.split()[1]))
    return kinds[job](key, size)


def build(case: str, job: str, tiny: bool) -> tuple[Callable[[], Any], dict[str, Any]]:
    """Compile one variant; return its step and what there is to say about it."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    import gradkin
    from experiments.benchmarks import compiled, models
    from gradkin import gradients

    size = 64 if tiny else CASES[case]
    if case.startswith("rows"):
        x = rows(tiny=tiny)
        flat = x.reshape(len(x), -1).astype(np.float64)
        project = lambda x: gradients.project_rows(make(job, size), x)
        step, report = compiled.build(project, (jnp.asarray(x),), job, ("jax", "jaxlib"))
        return step, report | errors(step(), flat @ flat.T)
    name = "transformer-64"
    model = models.tiny(name) if tiny else models.CASES[name]()
    arguments = (model.params, model.batch)
    if job == PLAIN:
        plain = lambda params, batch: jax.grad(model.batch_loss)(params, batch)
        return compiled.build(plain, arguments, job, ("jax", "jaxlib"))
    if job == FORMED:
        each = lambda params, batch: jax.vmap(jax.grad(model.loss), (None, 0))(params, batch)
        return compiled.build(each, arguments, job, ("jax", "jaxlib"))
    transform = gradkin.per_example_grads(model.loss)
    sketch = make(job.removesuffix(FROM_LOSS), size)
    features = lambda params, batch: transform(params, batch).sketch(sketch)
    gram = jax.jit(lambda params, batch: transform(params, batch).gram())(*arguments)
    step, report = compiled.build(features, arguments, job, ("jax", "jaxlib"))
    return step, report | errors(step(), gram)


def variants(case: str, *, tiny: bool, python: Path) -> list[Variant]:
    """Ours and the peers'."""
    suffix = ("--tiny",) if tiny else ()
    command = (sys.executable, "-m", __spec__.name, "--worker", case)
    if case.startswith("rows"):
        size = "64" if tiny else str(CASES[case])
        peer = (str(python), "-m", "experiments.benchmarks.peers.projectors")
        ours = [Variant(job, (*command, job, *suffix), THEIRS[:1]) for job in SKETCHES]
        return ours + [
            Variant(job, (*peer, job, size, *suffix), THEIRS[:1], MISSING) for job in THEIRS
        ]
    jobs = (PLAIN, FORMED, *(job + FROM_LOSS for job in OF_MODELS))
    ours = [Variant(job, (*command, job, *suffix), (PLAIN,)) for job in jobs]
    peer = (str(python), "-m", "experiments.benchmarks.peers.bergson_features")
    size = "16" if tiny else str(CASES[case])
    return ours + [
        Variant(
            f"bergson, {job}", (*peer, job, size, *suffix), (f"bergson, {BERGSON[0]}",), MISSING
        )
        for job in BERGSON
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    given_arguments = list(sys.argv[1:] if arguments is None else arguments)
    if given_arguments[:1] == ["--worker"]:
        _, case, job, *rest = given_arguments
        serve(lambda: build(case, job, bool(rest)))
        return 0
    parser = harness.options(__doc__)
    parser.add_argument("--peers", type=Path, default=PEERS, help="Python of the peers")
    given = parser.parse_args(given_arguments)
    cases = {case: variants(case, tiny=given.tiny, python=given.peers) for case in CASES}
    return harness.run("sketches", cases, given, goals=GOALS)


if __name__ == "__main__":
    sys.exit(main())
