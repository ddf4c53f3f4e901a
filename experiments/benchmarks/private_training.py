"""A step of private training against a step of ordinary training, and against other libraries.

Each row is one whole step (gradient and SGD update). The private one clips per example;
noise is a row of its own, because drawing a normal number per parameter is work of another kind
(bound by memory and the generator, not by the model). Ratios are to the fastest plain step of the
same model and batch; another library's are to its own plain gradient.

    python -m experiments.benchmarks.private_training                # six cases, 6 minutes
    python -m experiments.benchmarks.private_training --no-peers
"""

import functools
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from experiments.benchmarks import compiled, harness, models, per_example_gradients
from experiments.benchmarks.harness import Variant
from experiments.benchmarks.worker import serve

CASES = ("mlp-8", "mlp-64", "transformer-64", "cnn", "lora-64", "noise")
PLAIN = ("plain step: grad of mean", "plain step: batched loss")
PRIVATE = ("private step, no noise", "private step", "automatic clipping, no noise")
GENERATORS = ("threefry, inverse error function", "threefry, Box-Muller", "rbg, inverse")
# Times the plain step, set before the library was written; a convolutional network may take 1.6.
GOALS = {"private step, no noise": 1.3}
RATE = 0.1


def lora(*, tiny: bool) -> models.Case:
    """Adapters of rank 8 on the projections of a frozen causal transformer."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    batch, length, width, layers, rank, words = (
        (4, 6, 8, 2, 2, 11) if tiny else (16, 64, 256, 4, 8, 1000)
    )
    random = models.random
    names = ("q", "k", "v", "o")
    base = {
        "embedding": random((words, width), width, 1),
        "blocks": [
            {name: random((width, width), width, 10 * layer + i) for i, name in enumerate(names)}
            | {
                "up": random((width, 4 * width), width, 10 * layer + 5),
                "down": random((4 * width, width), 4 * width, 10 * layer + 6),
            }
            for layer in range(layers)
        ],
    }
    params = [
        {
            name: {
                "down": random((width, rank), width, 100 + 10 * layer + i),
                "up": random((rank, width), rank, 200 + 10 * layer + i),
            }
            for i, name in enumerate(names)
        }
        for layer in range(layers)
    ]
    heads = 2 if tiny else 4
    visible = np.tril(np.ones((length, length), bool))

    def loss(params: Any, ids: Any) -> Any:
        h = base["embedding"][ids[..., :-1]]
        for frozen, adapters in zip(base["blocks"], params, strict=True):

            def project(name: str, h: Any, frozen: Any = frozen, adapters: Any = adapters) -> Any:
                low = h @ adapters[name]["down"]
                return h @ frozen[name] + low @ adapters[name]["up"]

            x = models.rms(h, jnp.ones(width))
            q, k, v = (project(n, x).reshape((*x.shape[:-1], heads, -1)) for n in "qkv")
            scores = jnp.einsum("...thk,...shk->...hts", q, k) / np.float32(np.sqrt(width / heads))
            weights = jax.nn.softmax(jnp.where(visible, scores, -1e9))
            mixed = jnp.einsum("...hts,...shk->...thk", weights, v).reshape(h.shape)
            h = h + project("o", mixed)
            h = h + jax.nn.gelu(models.rms(h, jnp.ones(width)) @ frozen["up"]) @ frozen["down"]
        logits = models.rms(h, jnp.ones(width)) @ base["embedding"].T
        return jnp.mean(models.cross_entropy(logits, ids[..., 1:]))

    return models.Case(loss, loss, params, models.integers((batch, length + 1), words))


def case_of(name: str, *, tiny: bool) -> models.Case:
    """The model and batch of a case."""
    if name.startswith("lora"):
        return lora(tiny=tiny)
    return models.tiny(name) if tiny else models.CASES[name]()


def steps(case: models.Case) -> dict[str, tuple[str, Callable[..., Any]]]:
    """Every step of a case: what it computes, and how."""
    import jax
    import jax.numpy as jnp

    from gradkin import gradients

    size = jax.tree.leaves(case.batch)[0].shape[0]

    def descend(params: Any, grads: Any) -> Any:
        return jax.tree.map(lambda p, g: p - RATE * g, params, grads)

    def mean_of_mapped(params: Any, batch: Any) -> Any:
        return jnp.mean(jax.vmap(case.loss, (None, 0))(params, batch))

    def private(**options: Any) -> Callable[..., Any]:
        function = gradients.private_gradient(
            case.loss, clip_norm=1.0, sampling=gradients.FullBatch(size), check=False, **options
        )
        return lambda params, batch: descend(
            params, function(jax.random.key(0), params, batch).value
        )

    return {
        PLAIN[0]: ("step", lambda p, b: descend(p, jax.grad(mean_of_mapped)(p, b))),
        PLAIN[1]: ("step", lambda p, b: descend(p, jax.grad(case.batch_loss)(p, b))),
        PRIVATE[0]: ("private step", private(noise_multiplier=0.0)),
        PRIVATE[1]: ("noisy step", private(noise_multiplier=1.0)),
        PRIVATE[2]: ("automatic step", private(noise_multiplier=0.0, style="automatic")),
    }


def generators(size: int) -> dict[str, Callable[[], Any]]:
    """Ways to draw ``size`` normal numbers."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    def box_muller() -> Any:
        # 32 bits for the radius: tails to 6.66 standard deviations instead of 5.42.
        first, second = (jax.random.bits(k, (size // 2,), np.uint32) for k in
                         jax.random.split(jax.random.key(0)))  # fmt: skip
        u = (first.astype(np.float32) + np.float32(1)) * np.float32(2.0**-32)
        radius = jnp.sqrt(-2 * jnp.log(u))
        angle = second.astype(np.float32) * np.float32(2 * np.pi * 2.0**-32)
        return jnp.concatenate([radius * jnp.cos(angle), radius * jnp.sin(angle)])

    return {
        GENERATORS[0]: lambda: jax.random.normal(jax.random.key(0), (size,)),
        GENERATORS[1]: box_muller,
        GENERATORS[2]: lambda: jax.random.normal(jax.random.key(0, impl="rbg"), (size,)),
    }


def build(name: str, job: str, *, tiny: bool) -> tuple[Callable[[], Any], dict[str, Any]]:
    """Trace and compile a job; return its step and what there is to say about it."""
    packages = ("jax", "jaxlib")
    if name == "noise":
        draw: Any = generators(1000 if tiny else 2_000_000)[job]
        return compiled.build(draw, (), job, packages)
    case = case_of(name, tiny=tiny)
    quantity, fun = steps(case)[job]
    return compiled.build(fun, (case.params, case.batch), quantity, packages)


def variants(name: str, *, tiny: bool) -> list[Variant]:
    """Every job of a case; the first ones are the baseline."""
    suffix = ("--tiny",) if tiny else ()
    jobs, baseline = ((*PLAIN, *PRIVATE), PLAIN)
    if name == "noise":
        jobs, baseline = GENERATORS, GENERATORS[:1]
    command = (sys.executable, "-m", __spec__.name, "--worker", name)
    return [Variant(job, (*command, job, *suffix), baseline) for job in jobs]


def main(arguments: Sequence[str] | None = None) -> int:
    given_arguments = list(sys.argv[1:] if arguments is None else arguments)
    if given_arguments[:1] == ["--worker"]:
        _, name, job, *rest = given_arguments
        serve(functools.partial(build, name, job, tiny=bool(rest)))
        return 0
    parser = harness.options(__doc__)
    parser.add_argument("--no-peers", action="store_true", help="this library only")
    parser.add_argument(
        "--peers", type=Path, default=per_example_gradients.PEERS, help="Python of the peers"
    )
    given = parser.parse_args(given_arguments)
    cases = {name: variants(name, tiny=given.tiny) for name in CASES}
    if not given.no_peers:
        # Opacus has no tied weights.
        for name in (*CASES, "transformer-64-untied"):
            others = per_example_gradients.peers(name, tiny=given.tiny, python=given.peers)
            if others:
                cases[name + harness.PEERS] = others
    return harness.run("private_training", cases, given, goals=GOALS)


if __name__ == "__main__":
    sys.exit(main())
