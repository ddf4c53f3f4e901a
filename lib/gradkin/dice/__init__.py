"""Offline RL by distribution correction, and projecting one gradient off another."""

from gradkin.dice.behavior_cloning import CloningState, cloning_init, cloning_update
from gradkin.dice.divergences import DIVERGENCES, FDivergence, f_divergence
from gradkin.dice.grid_world import (
    GridWorld,
    grid_transitions,
    grid_world,
    move_values,
    policy_value,
    value_iteration,
)
from gradkin.dice.imitation import imitation_transitions, normalize_observations
from gradkin.dice.iql import IqlConfig, IqlState, expectile_loss, iql_init, iql_update
from gradkin.dice.maze import (
    MazeEpisodes,
    PointMaze,
    flatten_episodes,
    maze_demonstrations,
    maze_rollout,
    maze_step,
    success_rate,
)
from gradkin.dice.networks import critic_heads, init_heads, init_mlp, mlp, value_heads
from gradkin.dice.odice import OdiceConfig, OdiceMetrics, OdiceState, odice_init, odice_update
from gradkin.dice.orthogonal import OrthogonalGradient, orthogonal_gradient, orthogonalize
from gradkin.dice.policy import (
    GaussianPolicy,
    act,
    init_policy,
    log_prob,
    policy_mean,
    policy_weight,
    weighted_cloning_loss,
)
from gradkin.dice.rewards import episode_returns, process_rewards
from gradkin.dice.scores import normalized_score, reference_returns, worst_episode_gap
from gradkin.dice.targets import polyak_update
from gradkin.dice.td3_bc import (
    Td3BcConfig,
    Td3BcState,
    td3_bc_action,
    td3_bc_init,
    td3_bc_update,
)
from gradkin.dice.transitions import Transitions, sample_transitions
from gradkin.dice.value import ValueDiagnostics, ValueGradient, value_gradient

__all__ = [
    "CloningState",
    "DIVERGENCES",
    "FDivergence",
    "GaussianPolicy",
    "GridWorld",
    "IqlConfig",
    "IqlState",
    "MazeEpisodes",
    "OdiceConfig",
    "OdiceMetrics",
    "OdiceState",
    "OrthogonalGradient",
    "PointMaze",
    "Td3BcConfig",
    "Td3BcState",
    "Transitions",
    "ValueDiagnostics",
    "ValueGradient",
    "act",
    "cloning_init",
    "cloning_update",
    "critic_heads",
    "episode_returns",
    "expectile_loss",
    "f_divergence",
    "flatten_episodes",
    "grid_transitions",
    "grid_world",
    "imitation_transitions",
    "init_heads",
    "init_mlp",
    "init_policy",
    "iql_init",
    "iql_update",
    "log_prob",
    "maze_demonstrations",
    "maze_rollout",
    "maze_step",
    "mlp",
    "move_values",
    "normalize_observations",
    "normalized_score",
    "odice_init",
    "odice_update",
    "orthogonal_gradient",
    "orthogonalize",
    "policy_mean",
    "policy_value",
    "policy_weight",
    "polyak_update",
    "process_rewards",
    "reference_returns",
    "sample_transitions",
    "success_rate",
    "td3_bc_action",
    "td3_bc_init",
    "td3_bc_update",
    "value_gradient",
    "value_heads",
    "value_iteration",
    "weighted_cloning_loss",
    "worst_episode_gap",
]
