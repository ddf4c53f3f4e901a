"""Per-example gradients against the plain gradient, `vmap(grad)` and other libraries.

Each row is one job: the norms of all examples' gradients, the mean of the clipped gradients, or all
their inner products. Its ratio is to the fastest form of the plain gradient of the same model and
batch (`jax.grad` of the mean of the mapped loss, of the loss written for a batch, and `G.mean()`),
so 1.0 means that the job costs no more than a step of ordinary training. Another library's ratio is
to the plain step of that library.

    python -m experiments.benchmarks.per_example_gradients           # four cases, 4 minutes
    python -m experiments.benchmarks.per_example_gradients --full    # the others, peers, 15 minutes
"""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from experiments.benchmarks import compiled, harness, models
from experiments.benchmarks.harness import Variant
from experiments.benchmarks.worker import serve

FIRST = ("mlp-8", "mlp-64", "mlp-256", "transformer-64")
FULL = (
    "transformer-256",
    "transformer-64-untied",
    "transformer-256-untied",
    "transformer-64-remat",
    "transformer-256-remat",
    "cnn",
    "vit-tiny",
    "lstm",
)
ACCELERATOR = ("gpt2-small", "resnet-50")
PLAIN = ("plain: grad of mean", "plain: batched loss", "plain: G.mean()")
MAX_NORM = 1.0
# Times the plain gradient, set before the library was written.
GOALS = {"norms": 1.0, "clipped mean": 1.1}

# Peers have environments of their own (`make peers`).
PEERS = harness.ROOT / ".venv-peers" / "bin" / "python"
OPACUS = ("mlp-8", "mlp-64", "mlp-256", "transformer-64-untied", "transformer-256-untied", "cnn")
OPACUS = (*OPACUS, "vit-tiny", "lstm")
# By default it takes minutes on the wider multilayer perceptrons.
JAX_PRIVACY_DEFAULT = ("mlp-8", "transformer-64", "cnn", "lstm")
JAX_PRIVACY = ("mlp-8", "mlp-64", "mlp-256", "transformer-64", "cnn", "lstm")


def jobs(case: models.Case) -> dict[str, tuple[str, Callable[[Any, Any], Any]]]:
    """Every variant that JAX and this library run: what it computes, and how."""
    import jax
    import jax.numpy as jnp

    import gradkin

    def mean_of_mapped(params: Any, batch: Any) -> jax.Array:
        return jnp.mean(jax.vmap(case.loss, (None, 0))(params, batch))

    def matrix(**options: Any) -> Any:
        return gradkin.per_example_grads(case.loss, **options)

    def rows(params: Any, batch: Any) -> Any:
        return jax.vmap(jax.grad(case.loss), (None, 0))(params, batch)

    def squares(grads: Any) -> jax.Array:
        leaves = jax.tree.leaves(grads)
        return sum(jnp.sum(jnp.square(g), range(1, g.ndim)) for g in leaves)  # type: ignore

    def clipped_mean(params: Any, batch: Any) -> Any:
        grads = rows(params, batch)
        weights = jnp.minimum(1.0, MAX_NORM / jnp.sqrt(squares(grads)))
        weights = weights / weights.shape[0]
        # Contracted, because scaling first and adding then is far slower on a CPU.
        return jax.tree.map(
            lambda g: jax.lax.dot_general(weights, g, (((0,), (0,)), ((), ()))), grads
        )

    def gram(params: Any, batch: Any) -> jax.Array:
        flat = [g.reshape(g.shape[0], -1) for g in jax.tree.leaves(rows(params, batch))]
        return sum(g @ g.T for g in flat)  # type: ignore

    def matrix_jobs(**options: Any) -> tuple[tuple[str, Callable[[Any, Any], Any]], ...]:
        return (
            ("norms", lambda p, b: matrix(**options)(p, b).norms()),
            ("clipped mean", lambda p, b: matrix(**options)(p, b).clip(MAX_NORM).mean()),
            ("gram", lambda p, b: matrix(**options)(p, b).gram()),
        )

    found = {
        PLAIN[0]: ("mean", jax.grad(mean_of_mapped)),
        PLAIN[1]: ("mean", jax.grad(case.batch_loss)),
        PLAIN[2]: ("mean", lambda p, b: matrix()(p, b).mean()),
        "vmap(grad) norms": ("norms", lambda p, b: jnp.sqrt(squares(rows(p, b)))),
        "vmap(grad) clipped mean": ("clipped mean", clipped_mean),
        "vmap(grad) gram": ("gram", gram),
    }
    found |= {name: (name, fun) for name, fun in matrix_jobs()}
    size = jax.tree.leaves(case.batch)[0].shape[0]
    for name, fun in matrix_jobs(batch_size=size, passes=2):
        found[f"{name}, two passes"] = (name, fun)
    for route in ("dense", "factors"):
        found |= {f"{name}, {route}": (name, fun) for name, fun in matrix_jobs(route=route)}
    return found


def build(case: models.Case, job: str) -> tuple[Callable[[], Any], dict[str, Any]]:
    """Trace and compile a job; return its step and what there is to say about it."""
    quantity, fun = jobs(case)[job]
    return compiled.build(fun, (case.params, case.batch), quantity, ("jax", "jaxlib"))


def variants(name: str, *, tiny: bool) -> list[Variant]:
    """What JAX and this library do with a case; the rows of secondary cases are fewer."""
    suffix = ("--tiny",) if tiny else ()

    def ours(job: str) -> Variant:
        command = (sys.executable, "-m", __spec__.name, "--worker", name, job, *suffix)
        return Variant(job, command, PLAIN)

    found = [*PLAIN, *GOALS]
    if "untied" in name or name in ACCELERATOR:
        found += ["vmap(grad) clipped mean"]
    elif "remat" in name:
        found += ["norms, two passes", "clipped mean, two passes", "vmap(grad) clipped mean"]
    else:
        found += ["gram", "vmap(grad) norms", "vmap(grad) clipped mean", "vmap(grad) gram"]
        if name in FULL:
            found += ["norms, dense", "clipped mean, dense"]
    return [ours(job) for job in found]


def peers(name: str, *, tiny: bool, python: Path = PEERS) -> list[Variant]:
    """The other libraries that can run a case, each with its own plain step."""
    suffix = ("--tiny",) if tiny else ()
    found = []

    def add(peer: str, job: str) -> None:
        module = f"experiments.benchmarks.peers.{peer}_clipping"
        command = (str(python), "-m", module, name, job, *suffix)
        found.append(Variant(f"{peer} {job}", command, (f"{peer} plain",), f"{peer}: make peers"))

    if name in OPACUS:
        for job in ("plain", "hooks", "ghost"):
            add("opacus", job)
    if name in JAX_PRIVACY:
        for job in ("plain", "default", "microbatch of 1", "microbatch of 4"):
            if job != "default" or name in JAX_PRIVACY_DEFAULT:
                add("jax_privacy", job)
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    given_arguments = list(sys.argv[1:] if arguments is None else arguments)
    if given_arguments[:1] == ["--worker"]:
        _, name, job, *rest = given_arguments
        serve(lambda: build(models.tiny(name) if rest else models.CASES[name](), job))
        return 0
    parser = harness.options(__doc__)
    parser.add_argument("--full", action="store_true", help="the other cases, and the peers")
    parser.add_argument(
        "--peers", type=Path, default=PEERS, help="Python of the peers' environment"
    )
    given = parser.parse_args(given_arguments)
    cases = {name: variants(name, tiny=given.tiny) for name in models.CASES}
    for name in (*FIRST, *FULL):
        others = peers(name, tiny=given.tiny, python=given.peers)
        if others:
            cases[name + harness.PEERS] = others
    if not given.only:
        wanted = [*FULL, *(n for n in cases if n.endswith(harness.PEERS))] if given.full else FIRST
        cases = {name: cases[name] for name in wanted}
    return harness.run("per_example_gradients", cases, given, goals=GOALS)


if __name__ == "__main__":
    sys.exit(main())
