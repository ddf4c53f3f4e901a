"""One step of training on a part of its batch, chosen by the logits of all of it (UDS).

A decoder of 4 layers of width 256 over 1,000 tokens, Adam; sixteen candidates of 64 tokens, four of
them learned from. A step that selects pays for a forward pass of all candidates and its scores, and
saves three quarters of forward and backward passes. Ratios are to a step on all candidates.

    python -m experiments.benchmarks.batch_selection          # two cases, about two minutes
"""

import sys
from collections.abc import Callable, Sequence
from typing import Any

from experiments.benchmarks import harness
from experiments.benchmarks.harness import Variant
from experiments.benchmarks.worker import serve

BASELINE = "all candidates"
JOBS = (BASELINE, "UDS", "utility only", "highest loss", "random")
# Candidates and how many are selected.
CASES = {"4 of 16, T = 64": (16, 4, 64), "4 of 16, T = 128": (16, 4, 128)}
# The claim: selecting and learning takes less than learning from all.
GOALS = {"UDS": 1.0}


def build(case: str, job: str, tiny: bool) -> tuple[Callable[[], Any], dict[str, Any]]:
    """Compile the step of one variant; return it and what there is to say about it."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    import optax
    from flax import nnx

    from experiments.benchmarks import compiled
    from gradkin import models, optim, selection

    candidates, selected, length = (4, 2, 6) if tiny else CASES[case]
    vocabulary, width, depth = (11, 8, 1) if tiny else (1000, 256, 4)
    decoder = models.Decoder(
        vocabulary, width=width, depth=depth, max_length=length, num_heads=2, rngs=nnx.Rngs(0)
    )
    graph, params = nnx.split(decoder)
    optimizer = optax.adam(1e-3)
    numbers = np.random.default_rng(0).integers(vocabulary, size=(candidates, length + 1))
    tokens = jnp.asarray(numbers, jnp.int32)
    projection = selection.init_bilinear_projection(
        jax.random.key(0),
        time=length,
        vocabulary=vocabulary,
        rows=min(8, length),
        columns=min(128, vocabulary),
        scale="jl",
    )
    memory = selection.init_memory(1024, min(8, length) * min(128, vocabulary))

    def losses(params: Any, tokens: Any) -> tuple[Any, Any]:
        logits = nnx.merge(graph, params)(tokens[:, :-1])
        each = optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:])
        return jnp.mean(each, axis=1), logits

    def chosen(params: Any, tokens: Any, memory: Any, key: Any) -> tuple[Any, Any]:
        if job == BASELINE:
            return tokens, memory
        if job == "random":
            return tokens[jax.random.permutation(key, candidates)[:selected]], memory
        each, logits = losses(params, tokens)
        if job == "highest loss":
            return tokens[jax.lax.top_k(each, selected)[1]], memory
        alpha = 0.1 if job == "UDS" else 0.0
        found = selection.utility_diversity_select(
            memory, projection, logits, selected, alpha=alpha
        )
        return tokens[found.indices], found.memory

    def step(params: Any, state: Any, memory: Any, tokens: Any, key: Any) -> Any:
        few, memory = chosen(params, tokens, memory, key)
        grads = jax.grad(lambda params: jnp.mean(losses(params, few)[0]))(params)
        return *optim.update(optimizer, grads, state, params), memory

    arguments = (params, optimizer.init(params), memory, tokens, jax.random.key(1))
    return compiled.build(step, arguments, f"state after a step: {job}", ("jax", "jaxlib", "flax"))


def variants(case: str, *, tiny: bool) -> list[Variant]:
    """The ways to take a step."""
    command = (sys.executable, "-m", __spec__.name, "--worker", case)
    suffix = ("--tiny",) if tiny else ()
    return [Variant(job, (*command, job, *suffix), (BASELINE,)) for job in JOBS]


def main(arguments: Sequence[str] | None = None) -> int:
    given_arguments = list(sys.argv[1:] if arguments is None else arguments)
    if given_arguments[:1] == ["--worker"]:
        _, case, job, *rest = given_arguments
        serve(lambda: build(case, job, bool(rest)))
        return 0
    given = harness.options(__doc__).parse_args(given_arguments)
    cases = {case: variants(case, tiny=given.tiny) for case in CASES}
    return harness.run("batch_selection", cases, given, goals=GOALS)


if __name__ == "__main__":
    sys.exit(main())
