"""O-DICE and its baselines on MuJoCo locomotion (Mao et al. 2024, arXiv:2402.00348).

The paper's benchmark is D4RL: orthogonal-gradient DICE scores best on 13 of 15 data sets, and above
its semi-gradient version throughout. Quick scale trains on HalfCheetah steps that policies kept in
this repository make on the spot, half from a medium policy (normalised score 30), half from an
expert (79), both trained with soft actor-critic by `experiments/dice/collect.py`. Every arm has the
same widths, learning rate, batches and number of updates and sees normalised observations (without
them, or with random episodes mixed in, cloning does not leave the start in so few updates; the
paper's runs do not normalise). The paper's lambda and eta per data set are not public: eta is the
reference code's default, 1; lambda 0.5 scored best for the *semi*-gradient among 0.4, 0.5 and 0.6
(the code's default), so that the tuning can only favor the baseline. Scores are D4RL's normalised
ones; the seeds differ by 20 points, so a claim asks for every seed. D4RL's own files: ``--data
hopper-medium-v2`` reads NAME.hdf5 from D4RL_DATASET_DIR. Needs ``gradkin[rl]``.

    python -m experiments run dice/locomotion --preset quick --seeds 3        # about 3 minutes
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from experiments import figures
from experiments.dice import mujoco
from experiments.runner import Claim
from gradkin.data import rl
from gradkin.dice import (
    IqlConfig,
    OdiceConfig,
    Td3BcConfig,
    Transitions,
    cloning_init,
    cloning_update,
    iql_init,
    iql_update,
    normalize_observations,
    odice_init,
    odice_update,
    process_rewards,
    sample_transitions,
    td3_bc_init,
    td3_bc_update,
    worst_episode_gap,
)

PAPERS = ("odice",)
DATA = (
    "sac-halfcheetah", "halfcheetah-medium-v2", "hopper-medium-v2", "walker2d-medium-v2",
    "halfcheetah-medium-replay-v2", "hopper-medium-replay-v2", "walker2d-medium-replay-v2",
    "halfcheetah-medium-expert-v2", "hopper-medium-expert-v2", "walker2d-medium-expert-v2",
)  # fmt: skip
VMAP_SEEDS = True
RULES = {"O-DICE": "orthogonal", "S-DICE": "semi", "V-DICE": "true"}
ARMS = (*RULES, "BC", "TD3+BC", "IQL")


@dataclasses.dataclass(frozen=True)
class Config:
    data: str = "sac-halfcheetah"
    random: int = 0  # episodes of each policy, for data made here
    medium: int = 10
    expert: int = 10
    arms: tuple[str, ...] = ARMS
    lam: float = 0.5
    eta: float = 1.0
    value_width: int = 64
    policy_width: int = 64
    batch: int = 128
    learning_rate: float = 1e-3
    num_steps: int = 8_000
    every: int = 1_000
    eval_episodes: int = 2


PRESETS = {
    "smoke": Config(
        medium=1, expert=1, arms=("O-DICE", "TD3+BC"), value_width=4, policy_width=4,
        batch=4, num_steps=2, every=2, eval_episodes=1,
    ),
    "quick": Config(),
    "paper": Config(
        data="hopper-medium-replay-v2", lam=0.6, value_width=256, policy_width=1024, batch=256,
        learning_rate=2e-4, num_steps=1_000_000, every=5_000, eval_episodes=10,
    ),
}  # fmt: skip


def load(config: Config) -> dict:
    """The transitions with locomotion rewards, and the observations' statistics."""
    mixture = {name: getattr(config, name) for name in ("random", "medium", "expert")}
    steps = mujoco.episodes(config.data, {name: n for name, n in mixture.items() if n})
    rewards = process_rewards(
        steps.rewards, steps.terminals, scheme="locomotion", timeouts=steps.timeouts
    )
    data = Transitions(**rl.transitions(steps._replace(rewards=rewards))[0])
    data, (shift, scale) = normalize_observations(data)
    return {"train": data, "shift": shift.astype("f"), "scale": scale.astype("f")}


def data_spec(config: Config) -> dict:
    """Hopper's shapes: D4RL's files are not here."""
    n, spec = 402_000, lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32)
    train = Transitions(spec(n, 11), spec(n, 3), spec(n), spec(n, 11), spec(n))
    return {"train": train, "shift": spec(11), "scale": spec(11)}


def agent(config: Config, arm: str, sizes: dict[str, int]):
    """``init(key)``, ``update(key, state, batch)``, ``layers(state)``, whether tanh acts."""
    hidden = (config.policy_width, config.policy_width)
    if arm in RULES:
        settings = OdiceConfig(
            lam=config.lam, eta=config.eta, rule=RULES[arm],
            value_sizes=(config.value_width, config.value_width), policy_sizes=hidden,
            value_learning_rate=config.learning_rate, policy_learning_rate=config.learning_rate,
        )  # fmt: skip
        update = lambda key, state, batch: odice_update(settings, state, batch)[0]
        return partial(odice_init, config=settings, **sizes), update, lambda s: s.policy.mean, False
    if arm == "BC":
        widths = (sizes["observation_size"], *hidden, sizes["action_size"])
        step = partial(cloning_update, learning_rate=config.learning_rate)
        update = lambda key, state, batch: step(state, batch)[0]
        return partial(cloning_init, sizes=widths), update, lambda s: s.policy.mean, False
    shared = {"hidden_sizes": hidden, "learning_rate": config.learning_rate}
    if arm == "IQL":
        iql = IqlConfig(**shared)
        update = lambda key, state, batch: iql_update(iql, state, batch)[0]
        return partial(iql_init, config=iql, **sizes), update, lambda s: s.policy.mean, True
    if arm != "TD3+BC":
        raise ValueError(f"Expected arms among {ARMS}, got {arm!r}.")
    td3 = Td3BcConfig(**shared)

    update = lambda key, state, batch: td3_bc_update(key, td3, state, batch)[0]
    return partial(td3_bc_init, config=td3, **sizes), update, lambda s: s.policy, True


def run(config: Config, key, data, loop):
    observation, action = data["train"].observation.shape[1], data["train"].action.shape[1]
    sizes = {"observation_size": observation, "action_size": action}
    out = {}
    for arm in config.arms:
        init, update, layers, tanh = agent(config, arm, sizes)

        def step(state, data, update=update):
            key, batch_key, update_key = jax.random.split(state["key"], 3)
            batch = sample_transitions(batch_key, data["train"], config.batch)
            return {"key": key, "agent": update(update_key, state["agent"], batch)}

        def evaluate(state, data, layers=layers, tanh=tanh):
            return mujoco.scores(
                layers(state["agent"]), data["shift"], data["scale"],
                name=config.data, count=config.eval_episodes, tanh=tanh,
            )  # fmt: skip

        fresh = jax.jit(jax.vmap(lambda k, init=init: {"key": k, "agent": init(k)}))(key)
        _, out[arm] = loop(
            step, fresh, config.num_steps, every=config.every, evaluate=evaluate, data=data,
            name=arm,
        )  # fmt: skip
    steps = np.arange(config.num_steps // config.every + 1.0) * config.every
    return {**out, "steps": jnp.tile(jnp.asarray(steps, jnp.float32)[None], (key.shape[0], 1))}


def final(metrics, arm):
    """[S]: mean score of the last three evaluations."""
    return metrics[arm][:, -3:].mean((1, 2))


def margin(arm):
    return lambda metrics: final(metrics, "O-DICE") - final(metrics, arm)


def worst(metrics, arm):
    """[S]: how far the worst episode of the last three evaluations lies below their mean."""
    return np.array([worst_episode_gap(seed[-3:].ravel()) for seed in metrics[arm]])


CLAIMS = (
    Claim(
        "O-DICE scores above its semi-gradient version (difference of scores).",
        "odice", "halfcheetah-medium-expert 93.2 against 92.8", margin("S-DICE"),
        lambda x: x > 0, "every", "> 0", "not reproduced",
    ),
    Claim(
        "O-DICE scores above the true gradient.",
        "odice", "qualitative", margin("V-DICE"), lambda x: x > 0, "every", "> 0", "not reproduced",
    ),
    Claim(
        "O-DICE scores above behavior cloning.",
        "odice", "qualitative", margin("BC"), lambda x: x > 0, "every", "> 0", "not reproduced",
    ),
    Claim(
        "O-DICE scores above TD3+BC.",
        "odice", "best on 13 of 15 data sets", margin("TD3+BC"),
        lambda x: x > 0, "every", "> 0", "reproduced",
    ),
    Claim(
        "O-DICE scores above IQL.",
        "odice", "best on 13 of 15 data sets", margin("IQL"),
        lambda x: x > 0, "every", "> 0", "not reproduced",
    ),
    Claim(
        "O-DICE's worst episode lies nearer to its mean than S-DICE's (difference of the shares).",
        "odice", "qualitative (antmaze)",
        lambda m: worst(m, "O-DICE") - worst(m, "S-DICE"),
        lambda x: x > 0, "every", "> 0", "not reproduced",
    ),
)  # fmt: skip


def plot(metrics):
    figure, axes = figures.panels(1, 1, width=5.5, height=3.6)
    for arm in (name for name in ARMS if name in metrics):
        figures.band(axes, metrics["steps"][0], metrics[arm].mean(-1), label=arm)
    axes.set(xlabel="update", ylabel="normalised score", title="locomotion, mean of episodes")
    axes.legend(ncols=2)
    return figure
