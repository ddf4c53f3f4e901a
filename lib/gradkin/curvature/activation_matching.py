"""Activation matching: the permutation under which two networks' units respond alike."""

from collections.abc import Mapping
from typing import Any

from gradkin.curvature.convergent_learning import activation_moments, bipartite_match
from gradkin.typing import Array


def activation_matching(
    acts_a: Mapping[str, Any], acts_b: Mapping[str, Any], *, solver: str = "scipy"
) -> dict[str, Array]:
    """Permute b's units so that their activations correlate with a's (Li et al. 2016).

    .. math:: \\arg\\max_\\pi \\sum_i \\mathrm{corr}(X^a_i, X^b_{\\pi(i)})

    one linear assignment for each permutation: unlike weight matching it needs data, and its
    problems are independent of one another.

    Args:
      acts_a: name of a permutation -> activations ``[..., size]`` of a's units; all leading axes
        are samples.
      acts_b: the same of b, on the same samples.
      solver: of the linear assignments, see `linear_assignment`.

    Returns:
      Name -> ``[size]`` int32, for `apply_permutation`. Units that never vary are assigned to one
      another.

    Raises:
      ValueError: names or samples that differ, or numbers of units.

    Example:
      >>> import jax.numpy as jnp
      >>> from gradkin import curvature
      >>> x = jnp.array([[1.0, 0.0], [0.0, 1.0], [2.0, 1.0]])
      >>> curvature.activation_matching({"hidden": x}, {"hidden": x[:, ::-1]})["hidden"].tolist()
      [1, 0]

    References:
      Li, Yosinski, Clune, Lipson & Hopcroft (2016), "Convergent Learning", arXiv:1511.07543;
      Ainsworth, Hayase & Srinivasa (2023), "Git Re-Basin", arXiv:2209.04836.
      :cite:`convergent-learning` :cite:`ainsworth:23`

    Note:
      Git Re-Basin's own version maximizes the inner product of activations, which large units
      dominate; correlations, as in Li et al., weigh all units alike.
    """
    if acts_a.keys() != acts_b.keys():
        raise ValueError(f"Expected acts_b of {sorted(acts_a)}, got {sorted(acts_b)}.")

    def match(x: Array, y: Array) -> Array:
        found = activation_moments(x, y).correlations()
        live = {"live_a": found.live_a, "live_b": found.live_b}
        return bipartite_match(found.between, **live, solver=solver).index

    return {name: match(acts_a[name], acts_b[name]) for name in acts_a}
