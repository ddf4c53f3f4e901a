"""Normalised scores of the D4RL benchmark."""

import re
from collections.abc import Sequence

import numpy as np
from jaxtyping import Array, ArrayLike, Float

# (return of a random policy, return of an expert), from D4RL's published table.
REFERENCE_RETURNS = {
    "halfcheetah": (-280.178953, 12135.0),
    "hopper": (-20.272305, 3234.3),
    "walker2d": (1.629008, 4592.3),
    "ant": (-325.6, 3879.7),
    "antmaze": (0.0, 1.0),
    "kitchen": (0.0, 4.0),
    "maze2d-umaze": (23.85, 161.86),
    "maze2d-medium": (13.13, 277.39),
    "maze2d-large": (6.7, 273.99),
    "maze2d-umaze-dense": (68.537689, 193.66285641382482),
    "maze2d-medium-dense": (44.264742, 297.4552547777125),
    "maze2d-large-dense": (30.569041, 303.4857382709002),
    "pen": (96.262799, 3076.8331017826877),
    "door": (-56.512833, 2880.5693087298737),
    "hammer": (-274.856578, 12794.134825156867),
    "relocate": (-6.425911, 4233.877797728884),
}


def reference_returns(name: str) -> tuple[float, float]:
    """Returns of a random and of an expert policy.

    Args:
      name: a data set or environment, e.g. ``"hopper-medium-v2"`` or ``"HalfCheetah-v5"``.

    Returns:
      (random, expert).

    Raises:
      ValueError: if no reference is known for it.

    Example:
      >>> reference_returns("antmaze-large-play-v2")
      (0.0, 1.0)
    """
    text = re.sub(r"-v\d+$", "", name.lower())
    parts = text.split("-")
    if parts[0] == "maze2d":
        # Either order of "dense" and the size's name occurs in the wild.
        parts = [p for p in parts if p != "dense"][:2] + ["dense"] * ("dense" in parts)
        family = "-".join(parts)
    else:
        family = parts[0]
    if family not in REFERENCE_RETURNS:
        raise ValueError(
            f"Expected a data set with known reference returns ({', '.join(REFERENCE_RETURNS)}), "
            f"got name={name!r}."
        )
    return REFERENCE_RETURNS[family]


def normalized_score(
    returns: ArrayLike | Float[Array, "*S"], name: str
) -> np.ndarray | Float[Array, "*S"]:
    """100 (G - random) / (expert - random): 0 is random, 100 the expert (Fu et al. 2020).

    Args:
      returns: undiscounted returns G, any shape.
      name: as in `reference_returns`.

    Returns:
      Scores of the same shape.

    Raises:
      ValueError: if the reference returns are unknown.

    Example:
      >>> float(normalized_score(12135.0, "halfcheetah-medium-v2"))
      100.0

    References:
        Fu et al. (2020), "D4RL: Datasets for Deep Data-Driven Reinforcement Learning",
        arXiv:2004.07219. :cite:`fu:20`
    """
    low, high = reference_returns(name)
    values = returns if isinstance(returns, Array) else np.asarray(returns)
    scores = 100.0 * (values - low) / (high - low)
    return scores if isinstance(scores, Array) else np.asarray(scores)


def worst_episode_gap(returns: ArrayLike | Sequence[float], *, first: int = 10) -> float:
    """(min of the first episodes' returns - their mean) / |mean|: 0 is perfectly even.

    Args:
      returns: [E] returns of evaluation episodes.
      first: how many are looked at.

    Returns:
      The gap, <= 0.

    Raises:
      ValueError: on no episode or a mean of 0.

    Note:
      The reference code divides by the mean itself; we by its size, so that negative returns keep
      the sign's meaning.

    Example:
      >>> worst_episode_gap([1.0, 3.0])
      -0.5

    References:
        Mao et al. (2024), "ODICE", arXiv:2402.00348, figure on the worst episode. :cite:`odice`
    """
    values = np.asarray(returns, np.float64).reshape(-1)[:first]
    if len(values) == 0 or values.mean() == 0:
        raise ValueError(f"Expected returns with a mean other than 0, got {values}.")
    return float((values.min() - values.mean()) / abs(values.mean()))
