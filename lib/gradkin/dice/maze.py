"""A point in a square with a wall and two corridors around it, in pure JAX."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from gradkin.checks import positive
from gradkin.dice.transitions import Transitions
from gradkin.typing import PRNGKey


@dataclass(frozen=True, kw_only=True)
class PointMaze:
    """Geometry and reward; the square is [0, 1]^2 and the wall stands on its floor.

    Attributes:
      wall_x: where the wall stands.
      wall_height: how high it reaches.
      start: nominal start.
      goal: the goal's center.
      goal_radius: reaching it ends the episode with reward 0.
      step: length of a step per unit of action, action in [-1, 1]^2.
      step_reward: reward of every step that does not reach the goal.
    """

    wall_x: float = 0.5
    wall_height: float = 0.7
    start: tuple[float, float] = (0.1, 0.1)
    goal: tuple[float, float] = (0.9, 0.1)
    goal_radius: float = 0.08
    step: float = 0.05
    step_reward: float = -1.0


class MazeEpisodes(NamedTuple):
    """Attributes: transitions, [E, T, ...] fields; valid, [E, T], true up to the episode's end."""

    transitions: Transitions
    valid: Any


def maze_step(
    maze: PointMaze, position: Float[Array, "*S 2"], action: Float[Array, "*S 2"]
) -> tuple[Float[Array, "*S 2"], Float[Array, "*S"], Float[Array, "*S"]]:
    """Move, unless the segment crosses the wall; then stay.

    Args:
      maze: the maze.
      position: [..., 2].
      action: [..., 2], clipped to [-1, 1].

    Returns:
      New position [..., 2], reward [...], terminal [...] (1 at the goal).

    Example:
      >>> import jax.numpy as jnp
      >>> at, reward, done = maze_step(PointMaze(), jnp.array([0.48, 0.2]), jnp.array([1., 0.]))
      >>> round(float(at[0]), 2), float(reward), float(done)
      (0.48, -1.0, 0.0)
    """
    moved = jnp.clip(position + maze.step * jnp.clip(action, -1.0, 1.0), 0.0, 1.0)
    x0, x1 = position[..., 0], moved[..., 0]
    crosses = (x0 < maze.wall_x) != (x1 < maze.wall_x)
    share = jnp.where(crosses, (maze.wall_x - x0) / jnp.where(crosses, x1 - x0, 1.0), 0.0)
    height = position[..., 1] + share * (moved[..., 1] - position[..., 1])
    blocked = crosses & (height < maze.wall_height)
    new = jnp.where(blocked[..., None], position, moved)
    offsets = [new[..., i] - maze.goal[i] for i in range(2)]
    done = (offsets[0] ** 2 + offsets[1] ** 2 < maze.goal_radius**2).astype(new.dtype)
    return new, maze.step_reward * (1.0 - done), done


def maze_rollout(
    maze: PointMaze,
    policy: Callable[[Array, Array], Array],
    starts: Float[Array, "E 2"],
    horizon: int,
) -> MazeEpisodes:
    """Run E episodes side by side for at most ``horizon`` steps.

    Args:
      maze: the maze.
      policy: ``policy(position [E, 2], time [])`` -> action [E, 2].
      starts: [E, 2].
      horizon: T > 0.

    Returns:
      Episodes; an episode reached the goal if any of its ``terminal`` is 1.

    Raises:
      ValueError: on ``horizon < 1``.

    Example:
      >>> import jax.numpy as jnp
      >>> right = lambda position, time: jnp.ones_like(position)
      >>> out = maze_rollout(PointMaze(), right, jnp.array([[0.8, 0.05]]), 3)
      >>> out.valid.tolist()
      [[True, False, False]]
    """
    positive(horizon=horizon)

    def body(carry, time):
        position, alive = carry
        action = policy(position, time)
        new, reward, done = maze_step(maze, position, action)
        row = Transitions(position, jnp.clip(action, -1.0, 1.0), reward, new, done)
        return (new, alive & (done == 0)), (row, alive)

    alive = jnp.ones(starts.shape[:1], bool)
    _, (rows, valid) = jax.lax.scan(body, (starts, alive), jnp.arange(horizon))
    return MazeEpisodes(*jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1), (rows, valid)))


def maze_demonstrations(
    key: PRNGKey,
    maze: PointMaze,
    num_episodes: int,
    *,
    noise: float = 0.2,
    speed: float = 0.5,
    horizon: int = 200,
) -> MazeEpisodes:
    """Noisy trajectories over the wall, every other one through a higher corridor.

    Args:
      key: PRNG key.
      maze: the maze.
      num_episodes: E > 0.
      noise: standard deviation of each coordinate of the action.
      speed: length of the action's mean.
      horizon: T.

    Returns:
      The episodes.

    Raises:
      ValueError: on ``num_episodes < 1``.

    Example:
      >>> import jax
      >>> demonstrate = lambda key: maze_demonstrations(key, PointMaze(), 2)
      >>> jax.eval_shape(demonstrate, jax.random.key(0)).valid.shape
      (2, 200)
    """
    positive(num_episodes=num_episodes)
    start_key, noise_key = jax.random.split(key)
    starts = jnp.asarray(maze.start)[None] + 0.02 * jax.random.normal(start_key, (num_episodes, 2))
    jitter = noise * jax.random.normal(noise_key, (horizon, num_episodes, 2))
    room = 1.0 - maze.wall_height
    gates = jnp.where(jnp.arange(num_episodes) % 2 == 0, 0.5, 0.9) * room + maze.wall_height
    gates = jnp.stack([jnp.full(num_episodes, maze.wall_x + 0.02), gates], -1)

    def policy(position: Array, time: Array) -> Array:
        before = (position[:, :1] < maze.wall_x).astype(position.dtype)
        heading = before * gates + (1 - before) * jnp.asarray(maze.goal)[None] - position
        length = jnp.sqrt(jnp.sum(jnp.square(heading), -1, keepdims=True) + 1e-12)
        return speed * heading / length + jitter[time]

    return maze_rollout(maze, policy, starts, horizon)


def flatten_episodes(episodes: MazeEpisodes) -> tuple[Transitions, np.ndarray]:
    """The valid steps of all episodes in a row, on the host.

    Args:
      episodes: [E, T, ...].

    Returns:
      N transitions (NumPy) and the episode of each, [N].

    Example:
      >>> import numpy as np
      >>> x = np.arange(6.).reshape(2, 3)
      >>> valid = np.array([[True, True, False], [True, False, False]])
      >>> data, ids = flatten_episodes(MazeEpisodes(Transitions(x, x, x, x, x), valid))
      >>> data.reward.tolist(), ids.tolist()
      ([0.0, 1.0, 3.0], [0, 0, 1])
    """
    valid = np.asarray(episodes.valid)
    data = Transitions(*(np.asarray(field)[valid] for field in episodes.transitions))
    return data, np.nonzero(valid)[0]


def success_rate(episodes: MazeEpisodes) -> Float[Array, ""]:
    """Share of the episodes that reached the goal.

    Args:
      episodes: from `maze_rollout`.

    Returns:
      A number in [0, 1].

    Example:
      >>> import numpy as np
      >>> done = np.array([[0., 1.], [0., 0.]])
      >>> episodes = MazeEpisodes(Transitions(0, 0, 0, 0, done), np.ones((2, 2), bool))
      >>> float(success_rate(episodes))
      0.5
    """
    return jnp.any((episodes.transitions.terminal > 0) & jnp.asarray(episodes.valid), -1).mean()
