"""Updates per second of orthogonal-gradient DICE, against the same algorithm in PyTorch.

One call is ten whole updates (value, target, policy) on fixed rows of a random data set; both
sides start from the same parameters, and the check is that V has moved equally far after the first
call. The sizes are the reference code's: hopper (11/3, twin V with layer norm, policy 2x1024), the
same with a policy of 2x256, and antmaze (29/8, one V without layer norm). ``8 seeds`` trains eight
agents under one `vmap`; its time is for all of them.

    python -m experiments.benchmarks.dice            # three cases, 3 minutes; peers: make peers
"""

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from experiments.benchmarks import harness
from experiments.benchmarks.harness import Variant
from experiments.benchmarks.peers.odice_torch import CASES, UPDATES, make
from experiments.benchmarks.worker import serve

PEERS = harness.ROOT / ".venv-peers" / "bin" / "python"
RULES = ("orthogonal", "semi", "true")
SEEDS = 8


def build(name: str, job: str, tiny: bool) -> tuple[Callable[[], Any], dict[str, Any]]:
    """Trace and compile ten updates; return the step and what there is to say about it."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from gradkin.dice import OdiceConfig, OdiceState, Transitions, odice_init, odice_update

    case, (value, policy, data, rows) = CASES[name], make(name, tiny)
    rule, many = job.split(",")[0], "seeds" in job
    widths = lambda layers: tuple(layer["bias"].shape[-1] for layer in layers[:-1])
    config = OdiceConfig(
        lam=0.6, eta=1.0, rule=rule, layer_norm=case.layer_norm, num_heads=case.heads,
        value_sizes=widths(value), policy_sizes=widths(policy),
    )  # fmt: skip

    def start() -> OdiceState:
        size = {"observation_size": case.observation, "action_size": case.action}
        state = odice_init(jax.random.key(0), config, **size)
        online = jax.tree.map(lambda like, x: jnp.asarray(x), state.value, tuple(value))
        mean = jax.tree.map(lambda like, x: jnp.asarray(x), state.policy.mean, tuple(policy))
        target = jax.tree.map(jnp.copy, online)
        return state._replace(value=online, target=target, policy=state.policy._replace(mean=mean))

    def updates(state: OdiceState, data: Transitions) -> OdiceState:
        def body(state, index):
            batch = jax.tree.map(lambda field: field[index], data)
            return odice_update(config, state, batch)[0], None

        return jax.lax.scan(body, state, jnp.asarray(rows))[0]

    arrays = jax.tree.map(jnp.asarray, Transitions(*data))
    state = start()
    if many:
        state = jax.tree.map(lambda x: jnp.stack([x] * SEEDS), state)
        updates = jax.vmap(updates, in_axes=(0, None))
    begin = time.perf_counter()
    compiled = jax.jit(updates).lower(state, arrays).compile()
    seconds = time.perf_counter() - begin
    after = compiled(state, arrays)
    first = jax.tree.map(lambda x: x[0], after.value) if many else after.value
    moved = jax.tree.map(lambda a, b: np.asarray(a) - np.asarray(b), first, start().value)

    def step() -> Any:
        return jax.block_until_ready(compiled(state, arrays))

    step()
    device = jax.devices()[0]
    return step, {
        "value": float(
            np.sqrt(sum(np.sum(x.astype(np.float64) ** 2) for x in jax.tree.leaves(moved)))
        ),
        "quantity": f"{rule}: how far V moved",
        "updates_per_call": UPDATES,
        "agents": SEEDS if many else 1,
        "compile_seconds": harness.rounded(seconds),
        "device": f"{device.platform} {device.device_kind}",
        "versions": {"python": sys.version.split()[0], "jax": jax.__version__},
    }


def variants(name: str, *, tiny: bool, python: Path = PEERS) -> list[Variant]:
    """Ours and PyTorch's, rule by rule; the ratio is to PyTorch's."""
    suffix = ("--tiny",) if tiny else ()
    found = []
    for rule in RULES:
        command = (str(python), "-m", "experiments.benchmarks.peers.odice_torch", name, rule)
        peer = f"PyTorch {rule}"
        found.append(Variant(peer, (*command, *suffix), (peer,), "PyTorch: make peers"))
        jobs = (rule, f"{rule}, {SEEDS} seeds") if rule == "orthogonal" else (rule,)
        for job in jobs:
            command = (sys.executable, "-m", __spec__.name, "--worker", name, job)
            found.append(Variant(job, (*command, *suffix), (peer,)))
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    given_arguments = list(sys.argv[1:] if arguments is None else arguments)
    if given_arguments[:1] == ["--worker"]:
        _, name, job, *rest = given_arguments
        serve(lambda: build(name, job, bool(rest)))
        return 0
    parser = harness.options(__doc__)
    parser.add_argument(
        "--peers", type=Path, default=PEERS, help="Python of the peers' environment"
    )
    given = parser.parse_args(given_arguments)
    cases: dict[str, Sequence[Variant]]
    cases = {name: variants(name, tiny=given.tiny, python=given.peers) for name in CASES}
    return harness.run("dice", cases, given)


if __name__ == "__main__":
    sys.exit(main())
