"""A deterministic grid world, its exact optimum, and the exact value of a policy."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from gradkin.dice.transitions import Transitions
from gradkin.typing import Scalar

MOVES = ((-1, 0), (0, 1), (1, 0), (0, -1))


class GridWorld(NamedTuple):
    """S free cells and 4 moves (up, right, down, left); the goal ends the episode.

    Attributes:
      cells: [S, 2], row and column of each state.
      successor: [S, 4], the state a move leads to; a wall or the rim leaves it where it is.
      reward: [S, 4], -1 per move and 0 for the one that reaches the goal.
      terminal: [S, 4], 1 for a move that reaches the goal.
      start: index of the start.
      goal: index of the goal.
    """

    cells: np.ndarray
    successor: np.ndarray
    reward: np.ndarray
    terminal: np.ndarray
    start: int
    goal: int


def grid_world(drawing: str) -> GridWorld:
    """Read a grid world off a drawing: ``#`` wall, ``.`` free, ``S`` start, ``G`` goal.

    Args:
      drawing: lines of equal length.

    Returns:
      The grid world.

    Raises:
      ValueError: on lines of different length, an unknown sign, or other than one S and one G.

    Example:
      >>> world = grid_world("S.\\n#G")
      >>> world.successor[0].tolist(), world.reward[1].tolist()
      ([0, 1, 0, 0], [-1.0, -1.0, 0.0, -1.0])
    """
    rows = drawing.split()
    if len({len(row) for row in rows}) != 1 or set("".join(rows)) - set("#.SG"):
        raise ValueError(f"Expected drawing of equal lines made of #.SG, got {rows}.")
    if any("".join(rows).count(sign) != 1 for sign in "SG"):
        raise ValueError(f"Expected one S and one G in drawing, got {rows}.")
    grid = np.array([list(row) for row in rows])
    cells = np.argwhere(grid != "#")
    index = np.full(grid.shape, -1)
    index[tuple(cells.T)] = np.arange(len(cells))
    padded = np.pad(index, 1, constant_values=-1)
    here = np.arange(len(cells))
    successor = np.stack([padded[tuple((cells + 1 + move).T)] for move in np.array(MOVES)], 1)
    successor = np.where(successor < 0, here[:, None], successor)
    start, goal = (int(index[tuple(np.argwhere(grid == sign)[0])]) for sign in "SG")
    terminal = (successor == goal).astype(np.float32)
    return GridWorld(cells, successor, terminal - 1.0, terminal, start, goal)


def grid_transitions(world: GridWorld) -> Transitions:
    """Every state (but the goal) with every move once: uniform data over all of them.

    Args:
      world: the grid world.

    Returns:
      4 (S - 1) transitions; observations are state indices, actions move indices.

    Example:
      >>> grid_transitions(grid_world("S.\\n#G")).reward.shape
      (8,)
    """
    states, moves = (x.reshape(-1) for x in np.indices(world.successor.shape))
    keep = states != world.goal
    flat = (world.successor, world.reward, world.terminal)
    after, reward, terminal = (x.reshape(-1)[keep] for x in flat)
    return Transitions(states[keep], moves[keep], reward, after, terminal)


def value_iteration(
    world: GridWorld, discount: Scalar, *, num_steps: int | None = None
) -> Float[Array, " S"]:
    """V*, exact after as many sweeps as there are states (the moves are deterministic).

    Args:
      world: the grid world.
      discount: gamma in [0, 1).
      num_steps: sweeps, by default S.

    Returns:
      V* [S]; 0 at the goal. Of a state that cannot reach the goal: the truncated sum.

    Example:
      >>> value_iteration(grid_world("S.\\n#G"), 0.5).tolist()
      [-1.0, 0.0, 0.0]
    """
    steps = len(world.cells) if num_steps is None else num_steps
    free = jnp.asarray(np.arange(len(world.cells)) != world.goal, jnp.float32)

    def sweep(value: Array, _: None) -> tuple[Array, None]:
        return move_values(world, value, discount).max(1) * free, None

    return jax.lax.scan(sweep, jnp.zeros(len(world.cells)), None, steps)[0]


def move_values(
    world: GridWorld, value: Float[Array, " S"], discount: Scalar
) -> Float[Array, "S 4"]:
    """r + gamma (1 - done) V(s') of every state and move.

    Args:
      world: the grid world.
      value: V [S].
      discount: gamma.

    Returns:
      [S, 4].

    Example:
      >>> import jax.numpy as jnp
      >>> move_values(grid_world("S.\\n#G"), jnp.zeros(3), 0.9)[1].tolist()
      [-1.0, -1.0, 0.0, -1.0]
    """
    bootstrap = discount * (1.0 - jnp.asarray(world.terminal))
    return jnp.asarray(world.reward) + bootstrap * value[world.successor]


def policy_value(
    world: GridWorld, policy: Float[Array, "S 4"], discount: Scalar
) -> Float[Array, " S"]:
    """V of a policy by one linear solve: (I - gamma P) V = r.

    Args:
      world: the grid world.
      policy: probabilities of the moves, rows sum to 1.
      discount: gamma in [0, 1).

    Returns:
      V [S]; 0 at the goal.

    Raises:
      ValueError: if ``policy`` is not [S, 4].

    Example:
      >>> import jax.numpy as jnp
      >>> world = grid_world("S.\\n#G")
      >>> policy = jnp.array([[0., 1, 0, 0], [0, 0, 1, 0], [1, 0, 0, 0]])
      >>> round(float(policy_value(world, policy, 0.5)[0]), 4)
      -1.0
    """
    if policy.shape != world.successor.shape:
        raise ValueError(f"Expected policy of shape {world.successor.shape}, got {policy.shape}.")
    states = len(world.cells)
    free = jnp.asarray(np.arange(states) != world.goal, policy.dtype)
    flow = policy * (1.0 - jnp.asarray(world.terminal)) * free[:, None]
    rows = jnp.arange(states)[:, None]
    transition = jnp.zeros((states, states)).at[rows, jnp.asarray(world.successor)].add(flow)
    reward = jnp.sum(policy * jnp.asarray(world.reward), 1) * free
    return jnp.linalg.solve(jnp.eye(states) - discount * transition, reward)
