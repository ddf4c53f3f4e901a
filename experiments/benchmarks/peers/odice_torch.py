"""Orthogonal-gradient DICE in PyTorch, written for the benchmark, and the data of both sides.

The algorithm is that of `gradkin.dice.odice_update`: one graph at s for the linear and the forward
gradient, one at s' for the backward gradient, fused optimizers.

    python -m experiments.benchmarks.peers.odice_torch CASE RULE [--tiny]
"""

import sys
from collections.abc import Callable
from typing import Any, NamedTuple

from experiments.benchmarks.worker import serve

UPDATES, BATCH, ROWS = 10, 256, 20_000
LAMBDA, ETA, DISCOUNT, RATE, LEARNING_RATE, DECAY = 0.6, 1.0, 0.99, 0.005, 2e-4, 1e-4


class Case(NamedTuple):
    """Sizes of one case."""

    observation: int
    action: int
    policy: int
    heads: int
    layer_norm: bool


CASES = {
    "hopper": Case(11, 3, 1024, 2, True),
    "hopper-256": Case(11, 3, 256, 2, True),
    "antmaze": Case(29, 8, 1024, 1, False),
}


def make(name: str, tiny: bool) -> tuple[Any, Any, Any, Any]:
    """Value layers (heads stacked), policy layers, data and rows as NumPy, the same everywhere."""
    import numpy as np

    case, rng = CASES[name], np.random.default_rng(0)
    width, policy_width, batch = (4, 4, 8) if tiny else (256, case.policy, BATCH)

    def layers(sizes: tuple[int, ...], heads: tuple[int, ...], norm: bool) -> list[dict[str, Any]]:
        found = []
        for i, (fan_in, out) in enumerate(zip(sizes[:-1], sizes[1:], strict=True)):
            bound = fan_in**-0.5
            draw = lambda *shape, b=bound: rng.uniform(-b, b, (*heads, *shape)).astype("f")
            layer = {"kernel": draw(fan_in, out), "bias": draw(out)}
            if norm and i < len(sizes) - 2:
                layer["norm_scale"] = np.ones((*heads, out), "f")
                layer["norm_bias"] = np.zeros((*heads, out), "f")
            found.append(layer)
        return found

    value = layers((case.observation, width, width, 1), (case.heads,), case.layer_norm)
    policy = layers((case.observation, policy_width, policy_width, case.action), (), False)
    normal = lambda *shape: rng.normal(size=(ROWS, *shape)).astype("f")
    data = (
        normal(case.observation), np.tanh(normal(case.action)), normal(),
        normal(case.observation), (rng.random(ROWS) < 0.01).astype("f"),
    )  # fmt: skip
    return value, policy, data, rng.integers(0, ROWS, (UPDATES, batch))


def build(name: str, rule: str, tiny: bool) -> tuple[Callable[[], Any], dict[str, Any]]:
    """Return ten updates as a step, and what there is to say about it."""
    import torch

    case, (value, policy, arrays, rows) = CASES[name], make(name, tiny)
    tensor = lambda x: torch.from_numpy(x)
    parameters = lambda layers: [tensor(x).clone() for layer in layers for x in layer.values()]
    per_layer = lambda layers: [len(layer) for layer in layers]
    online, target, actor = parameters(value), parameters(value), parameters(policy)
    log_std = torch.zeros(case.action)
    trained = [*actor, log_std]
    for x in (*online, *trained):
        x.requires_grad_(True)
    start = [x.detach().clone() for x in online]
    data, index = [tensor(x) for x in arrays], tensor(rows)

    def forward(flat: list[Any], counts: list[int], x: Any) -> Any:
        position, last = 0, len(counts) - 1
        for number, count in enumerate(counts):
            kernel, bias, *norm = flat[position : position + count]
            position += count
            heads = kernel.ndim == 3
            x = x @ kernel + (bias[:, None] if heads else bias)
            if norm:
                x = torch.nn.functional.layer_norm(x, x.shape[-1:])
                x = x * norm[0][:, None] + norm[1][:, None]
            x = torch.relu(x) if number < last else x
        return x

    counts, policy_counts = per_layer(value), per_layer(policy)
    value_of = lambda flat, s: forward(flat, counts, s)[..., 0]
    conjugate = lambda y: y * torch.relu(y / 2 + 1) - (torch.relu(y / 2 + 1) - 1) ** 2
    value_optimizer = torch.optim.Adam(online, LEARNING_RATE, fused=True)
    policy_optimizer = torch.optim.Adam(trained, LEARNING_RATE, weight_decay=DECAY, fused=True)

    def value_step(s: Any, r: Any, after: Any, done: Any) -> Any:
        factor = DISCOUNT * (1 - done)
        here = value_of(online, s)
        linear = (1 - LAMBDA) * here.mean()
        if rule == "true":
            residual = r + factor * value_of(online, after) - here
            total = linear + LAMBDA * conjugate(residual).mean()
            gradient = torch.autograd.grad(total, online)
        else:
            with torch.no_grad():
                future = value_of(target, after).min(0).values
            residual = r + factor * future - here
            loss = LAMBDA * conjugate(residual).mean()
            if rule == "semi":
                gradient = torch.autograd.grad(linear + loss, online)
            else:
                with torch.no_grad():
                    now = value_of(target, s).min(0).values
                g_l = torch.autograd.grad(linear, online, retain_graph=True)
                g_f = torch.autograd.grad(loss, online)
                backward = LAMBDA * conjugate(r + factor * value_of(online, after) - now).mean()
                g_b = torch.autograd.grad(backward, online)
                dot = lambda a, b: sum(torch.dot(x.flatten(), y.flatten()) for x, y in zip(a, b))
                c = dot(g_f, g_b) / torch.clamp(dot(g_f, g_f), min=1e-10)
                gradient = [a + b + ETA * (d - c * b) for a, b, d in zip(g_l, g_f, g_b)]
        for x, g in zip(online, gradient, strict=True):
            x.grad = g
        value_optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(target, online, RATE)
        return residual.detach()

    def update(at: Any) -> None:
        s, a, r, after, done = (x[at] for x in data)
        weight = torch.clamp(value_step(s, r, after, done), 0.0, 100.0)
        scale = torch.clamp(log_std, -5.0, 2.0)
        normal = torch.distributions.Normal(forward(actor, policy_counts, s), scale.exp())
        policy_optimizer.zero_grad()
        (-(weight * normal.log_prob(a).sum(-1)).mean()).backward()
        policy_optimizer.step()

    def step() -> None:
        for at in index:
            update(at)

    step()
    moved = sum(float(((x.detach() - y).double() ** 2).sum()) for x, y in zip(online, start))
    return step, {
        "value": moved**0.5,
        "quantity": f"{rule}: how far V moved",
        "updates_per_call": UPDATES,
        "agents": 1,
        "threads": torch.get_num_threads(),
        "versions": {"torch": torch.__version__.split("+")[0]},
    }


if __name__ == "__main__":
    _, name, rule, *rest = sys.argv
    serve(lambda: build(name, rule, bool(rest)))
