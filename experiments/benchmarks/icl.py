"""Training steps per second of in-context transformers, against a plain Flax NNX loop.

One call is `STEPS` steps, each on fresh tasks. The baseline is how such a model is usually trained:
an NNX module that updates every token, one `nnx.jit` step per Python iteration. Ours are pure
functions in one `lax.scan`: with every token updated, and by the query-only route. All start from
the same weights and draw the same tasks; the check is the loss on fixed tasks after the first call.
``8 seeds`` trains eight models under one `vmap`; its time is for all of them.

    python -m experiments.benchmarks.icl            # three cases, about a minute
"""

import functools
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from experiments.benchmarks import harness
from experiments.benchmarks.harness import Variant
from experiments.benchmarks.worker import serve

STEPS = 20
SEEDS = 8
BASELINE = "NNX loop"
GOALS = {"query only": 1 / 3}


class Case(NamedTuple):
    """Depth with shared weights, tasks per step."""

    num_layers: int
    batch: int


CASES = {
    "one layer, batch 512": Case(1, 512),
    "one layer, batch 2048": Case(1, 2048),
    "two layers, batch 512": Case(2, 512),
}


def build(name: str, job: str, tiny: bool) -> tuple[Callable[[], Any], dict[str, Any]]:
    """Compile the steps of one variant; return the call and what there is to say about it."""
    import jax
    import jax.numpy as jnp
    import optax

    from gradkin import icl, optim

    case = Case(CASES[name].num_layers, 8) if tiny else CASES[name]
    weights = icl.init_attention(jax.random.key(0), width=11)
    optimizer = optax.chain(optax.clip_by_global_norm(1e-3), optax.adam(1e-3, b1=0.9, b2=0.98))
    draw = functools.partial(icl.linear_tasks, num_tasks=case.batch)
    fixed = icl.linear_tasks(jax.random.key(1), 500)

    def tokens(tasks):
        return jax.vmap(icl.constructed_tokens)(tasks.x, tasks.y, tasks.query)

    def loss_of(predict, tasks):
        return ((predict(tokens(tasks)) - tasks.target) ** 2).mean() / 2

    def all_tokens(weights, batch):
        full = functools.partial(icl.transformer, weights, num_layers=case.num_layers)
        return -jax.vmap(full)(batch)[:, -1, -1, -1:]

    def query_only(weights, batch):
        route = functools.partial(icl.predict, weights, num_layers=case.num_layers)
        return jax.vmap(route)(batch)

    if job == BASELINE:
        call, seconds, loss = nnx_loop(case, weights, optimizer, draw, loss_of, fixed)
    else:
        predict = all_tokens if job == "all tokens" else query_only

        def step(state, _):
            weights, opt_state, key = state
            key, use = jax.random.split(key)
            tasks = draw(use)
            grads = jax.grad(lambda w: loss_of(functools.partial(predict, w), tasks))(weights)
            weights, opt_state = optim.update(optimizer, grads, opt_state, weights)
            return (weights, opt_state, key), None

        chunk = lambda state: jax.lax.scan(step, state, length=STEPS)[0]
        state = (weights, optimizer.init(weights), jax.random.key(2))
        if "seeds" in job:
            state = jax.tree.map(lambda leaf: jnp.stack([leaf] * SEEDS), state)
            chunk = jax.vmap(chunk)
        start = time.perf_counter()
        compiled = jax.jit(chunk).lower(state).compile()
        seconds = time.perf_counter() - start
        trained = compiled(state)[0]
        if "seeds" in job:
            trained = jax.tree.map(lambda leaf: leaf[0], trained)
        loss = loss_of(functools.partial(query_only, trained), fixed)

        def call():
            nonlocal state
            state = jax.block_until_ready(compiled(state))

    device = jax.devices()[0]
    return call, {
        "value": float(loss),
        "quantity": "loss on fixed tasks after the first call",
        "steps_per_call": STEPS,
        "models": SEEDS if "seeds" in job else 1,
        "compile_seconds": harness.rounded(seconds),
        "device": f"{device.platform} {device.device_kind}",
        "versions": {"python": sys.version.split()[0], "jax": jax.__version__},
    }


def nnx_loop(case, weights, optimizer, draw, loss_of, fixed):
    """The baseline: module, optimizer and one jitted step per iteration, as the Flax guide has."""
    import jax
    from flax import nnx

    from gradkin import icl

    model = icl.nnx_transformer(weights, num_layers=case.num_layers, full=True)
    trainer = nnx.Optimizer(model, optimizer, wrt=nnx.Param)

    @nnx.jit
    def train_step(model, trainer, key):
        key, use = jax.random.split(key)
        tasks = draw(use)
        loss, grads = nnx.value_and_grad(lambda model: loss_of(model, tasks))(model)
        trainer.update(model, grads)
        return key, loss

    key = jax.random.key(2)

    def call():
        nonlocal key
        for _ in range(STEPS):
            key, loss = train_step(model, trainer, key)
        jax.block_until_ready((key, nnx.state(model)))

    start = time.perf_counter()
    call()
    return call, time.perf_counter() - start, loss_of(model, fixed)


def variants(name: str, *, tiny: bool) -> list[Variant]:
    """The loop and ours; the ratio is to the loop."""
    suffix = ("--tiny",) if tiny else ()
    command = (sys.executable, "-m", __spec__.name, "--worker", name)
    jobs = (BASELINE, "all tokens", "query only", f"query only, {SEEDS} seeds")
    return [Variant(job, (*command, job, *suffix), (BASELINE,)) for job in jobs]


def main(arguments: Sequence[str] | None = None) -> int:
    given_arguments = list(sys.argv[1:] if arguments is None else arguments)
    if given_arguments[:1] == ["--worker"]:
        _, name, job, *rest = given_arguments
        serve(lambda: build(name, job, bool(rest)))
        return 0
    given = harness.options(__doc__).parse_args(given_arguments)
    cases: dict[str, Sequence[Variant]] = {name: variants(name, tiny=given.tiny) for name in CASES}
    return harness.run("icl", cases, given, goals=GOALS)


if __name__ == "__main__":
    sys.exit(main())
