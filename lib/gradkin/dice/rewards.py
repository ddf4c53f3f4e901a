"""Reward processing per family of data sets."""

import numpy as np

from gradkin.checks import one_of, rank

SCHEMES = ("locomotion", "antmaze", "imitation", "none")


def episode_returns(
    rewards: np.ndarray,
    terminals: np.ndarray,
    *,
    timeouts: np.ndarray | None = None,
    max_steps: int = 1000,
) -> np.ndarray:
    """Returns of the complete episodes of a flat data set; the last, unfinished one is left out.

    Args:
      rewards: [N].
      terminals: [N], whether the episode ended there.
      timeouts: [N], whether it was cut there; None: cut every ``max_steps`` steps.
      max_steps: length at which an episode counts as complete.

    Returns:
      One return per complete episode.

    Raises:
      ValueError: on mismatched lengths or rewards that are not finite.

    Example:
      >>> import numpy as np
      >>> episode_returns(np.ones(5), np.array([0, 1, 0, 1, 0])).tolist()
      [2.0, 2.0]
    """
    rewards = check_rewards(rewards, terminals)
    ends = np.asarray(terminals).astype(bool)
    if timeouts is not None:
        ends = ends | np.asarray(timeouts).astype(bool)
    # The last end at or before each row gives the age of its episode; ages cut at max_steps.
    starts = np.concatenate([[0], np.flatnonzero(ends[:-1]) + 1]) if len(ends) else np.zeros(1, int)
    age = np.arange(len(ends)) - np.repeat(starts, np.diff(np.append(starts, len(ends))))
    stops = np.flatnonzero(ends | ((age + 1) % max_steps == 0))
    if len(stops) == 0:
        return np.zeros(0)
    total = np.concatenate([[0.0], np.cumsum(rewards, dtype=np.float64)])
    return np.diff(total[np.concatenate([[0], stops + 1])])


def process_rewards(
    rewards: np.ndarray,
    terminals: np.ndarray,
    *,
    scheme: str,
    timeouts: np.ndarray | None = None,
    max_steps: int = 1000,
) -> np.ndarray:
    """Rewards as the reference code trains on them.

    ``locomotion``: r / (max return - min return) * 1000 over complete episodes; ``antmaze``: -3
    where r == 0, else 0; ``imitation``: 0; ``none``: r.

    Args:
      rewards: [N].
      terminals: [N].
      scheme: one of the names above.
      timeouts: as in `episode_returns`.
      max_steps: as in `episode_returns`.

    Returns:
      [N] float32.

    Raises:
      ValueError: on an unknown scheme, rewards that are not finite, mismatched lengths, or, for
        ``locomotion``, fewer than two complete episodes of different return.

    Example:
      >>> import numpy as np
      >>> process_rewards(np.array([0., 1.]), np.array([0, 1]), scheme="antmaze").tolist()
      [-3.0, 0.0]

    References:
        Mao et al. (2024), "ODICE", arXiv:2402.00348, appendix on experiment details. :cite:`odice`
    """
    one_of(SCHEMES, scheme=scheme)
    rewards = check_rewards(rewards, terminals)
    if scheme == "locomotion":
        returns = episode_returns(rewards, terminals, timeouts=timeouts, max_steps=max_steps)
        spread = float(np.ptp(returns)) if len(returns) else 0.0
        if spread <= 0:
            raise ValueError(
                "Expected complete episodes of different return for scheme='locomotion', got "
                f"{len(returns)} with a spread of {spread}."
            )
        rewards = rewards / spread * 1000.0
    elif scheme == "antmaze":
        rewards = np.where(rewards == 0, -3.0, 0.0)
    elif scheme == "imitation":
        rewards = np.zeros_like(rewards)
    return rewards.astype(np.float32)


def check_rewards(rewards: np.ndarray, terminals: np.ndarray) -> np.ndarray:
    rewards = np.asarray(rewards)
    rank(1, rewards=rewards)
    if np.shape(terminals) != rewards.shape:
        raise ValueError(
            f"Expected terminals like rewards, got {np.shape(terminals)} and {rewards.shape}."
        )
    if not np.all(np.isfinite(rewards)):
        row = int(np.flatnonzero(~np.isfinite(rewards))[0])
        raise ValueError(f"Expected finite rewards, got {rewards[row]} in row {row}.")
    return rewards
