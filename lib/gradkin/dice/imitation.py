"""Imitation from one trajectory: the same updates with reward zero."""

import numpy as np

from gradkin.dice.transitions import Transitions, check_transitions


def normalize_observations(
    data: Transitions, *, eps: float = 1e-3
) -> tuple[Transitions, tuple[np.ndarray, np.ndarray]]:
    """(s - mean) / (std + eps) with the statistics of ``data``'s own observations.

    Args:
      data: N transitions.
      eps: added to the standard deviation.

    Returns:
      The normalised transitions, and (mean, std + eps) for use at acting time.

    Raises:
      ValueError: on empty data or fields of unequal length.

    Example:
      >>> import numpy as np
      >>> s, r = np.array([[0.], [2.]]), np.zeros(2)
      >>> normalize_observations(Transitions(s, s, r, s, r), eps=0.)[0].observation.tolist()
      [[-1.0], [1.0]]
    """
    check_transitions(data)
    states = np.asarray(data.observation)
    shift, scale = states.mean(0), states.std(0) + eps
    standard = lambda s: ((np.asarray(s) - shift) / scale).astype(states.dtype)
    data = data._replace(
        observation=standard(data.observation), next_observation=standard(data.next_observation)
    )
    return data, (shift, scale)


def imitation_transitions(data: Transitions, episode_ids: np.ndarray, episode: int) -> Transitions:
    """One expert trajectory with reward 0: what the imitation variant trains on.

    Minimising the value loss with r = 0 matches the visitation of the trajectory itself
    (Mao et al. 2024, section on imitation). Train with ``OdiceConfig(lam=0.4, eta=1.0, tanh=True,
    layer_norm=False, value_learning_rate=1e-4, policy_learning_rate=1e-4)``.

    Args:
      data: N transitions.
      episode_ids: [N], the episode of each.
      episode: which one to keep.

    Returns:
      Its transitions, with reward 0.

    Raises:
      ValueError: if there is no such episode or the lengths differ.

    Note:
      The reference loader keeps the last step of a trajectory with the first state of the next one
      as its successor. Here transitions that cross an episode's end do not exist.

    Example:
      >>> import numpy as np
      >>> s, r = np.zeros((3, 2)), np.ones(3)
      >>> imitation_transitions(Transitions(s, s, r, s, r), np.array([0, 1, 1]), 1).reward.tolist()
      [0.0, 0.0]

    References:
        Mao et al. (2024), "ODICE", arXiv:2402.00348. :cite:`odice`
    """
    size = check_transitions(data)
    if np.shape(episode_ids) != (size,):
        raise ValueError(f"Expected episode_ids of shape ({size},), got {np.shape(episode_ids)}.")
    rows = np.flatnonzero(np.asarray(episode_ids) == episode)
    if len(rows) == 0:
        raise ValueError(f"Expected an episode in episode_ids, got episode={episode}.")
    kept = Transitions(*(np.asarray(field)[rows] for field in data))
    return kept._replace(reward=np.zeros_like(kept.reward))
