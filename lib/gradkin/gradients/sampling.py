"""How a private batch is drawn: what is sampled here is what the accountant is told."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Int

from gradkin import checks
from gradkin.typing import Array, PRNGKey

# Without a padded size of the user's own, at most this share of batches is cut.
OVERFLOW = 1e-16


class Batch(NamedTuple):
    """Rows of the data set that make one batch.

    Attributes:
      rows: example numbers ``[size]``; where ``mask`` is False, any valid number.
      mask: which of them are examples ``[size]``; the others are padding.
    """

    rows: Int[Array, " size"]
    mask: Bool[Array, " size"]


@dataclasses.dataclass(frozen=True)
class PoissonSampling:
    """Every example joins a batch independently with the same probability.

    The batch is padded to one static size, so a changing number of examples never recompiles.
    When more were drawn than fit, a uniformly random subset of ``padded_size`` is kept. This cut
    is part of the mechanism (it makes the other examples depend on a neighbour's presence), and
    `epsilon` accounts for it: exactly with "pld", through the cut's probability with "rdp".

    Args:
      num_examples: size ``N`` of the data set, public.
      probability: ``q`` in (0, 1].
      padded_size: static batch size; default the least multiple of 8 that overflows with
        probability at most 1e-16.

    Raises:
      ValueError: a probability outside (0, 1], no examples, or no room.

    Example:
      >>> import jax
      >>> from gradkin import gradients
      >>> sampling = gradients.PoissonSampling(1000, 0.05)
      >>> sampling.expected_size, sampling.size
      (50.0, 120)
      >>> rows, mask = sampling.sample(jax.random.key(0))
      >>> rows.shape, mask.dtype
      ((120,), dtype('bool'))

    References:
      Ganesh (2025), "Tighter Privacy Analysis for Truncated Poisson Sampling",
      arXiv:2508.15089. :cite:`ganesh:25`
    """

    num_examples: int
    probability: float
    padded_size: int | None = None

    def __post_init__(self):
        check_size("num_examples", self.num_examples)
        if not 0 < self.probability <= 1:
            raise ValueError(
                f"Expected 0 < probability <= 1, got probability={self.probability}: the chance "
                "that one example joins a batch."
            )
        if self.padded_size is not None:
            check_size("padded_size", self.padded_size)

    @property
    def expected_size(self) -> float:
        """``N q``: the constant a noised sum is divided by."""
        return self.num_examples * self.probability

    @property
    def size(self) -> int:
        """Static number of rows of a batch, padding included."""
        if self.padded_size is not None:
            return min(self.padded_size, self.num_examples)
        from scipy.stats import binom

        needed = int(binom.isf(OVERFLOW, self.num_examples, self.probability))
        return min(self.num_examples, 8 * -(-max(needed, 1) // 8))

    @property
    def overflow_probability(self) -> float:
        """Chance that a batch is cut, on a data set of ``N + 1`` examples (the worse neighbour)."""
        if self.size >= self.num_examples:
            return 0.0
        from scipy.stats import binom

        return float(binom.sf(self.size, self.num_examples + 1, self.probability))

    def sample(self, key: PRNGKey) -> Batch:
        """Draw one batch; the same on every device and process that has the key."""
        # Integers: the probability is a multiple of 2^-32, rounded down, and 0 < q is met exactly.
        threshold = min(int(self.probability * 2**32), 2**32 - 1)
        bits = jax.random.bits(key, (self.num_examples,), np.uint32)
        # The smallest numbers: all that are below the threshold, or a random subset of these.
        top, rows = jax.lax.top_k(~bits, self.size)
        below = ~top < np.uint32(threshold)
        return Batch(rows, jnp.ones_like(below) if self.probability == 1 else below)


@dataclasses.dataclass(frozen=True)
class FixedSizeSampling:
    """Batches of one size, drawn without replacement, anew at every step.

    Accounted for under the relation "replace_one" only. A shuffled pass over the data is not this.

    Args:
      num_examples: size ``N`` of the data set, public.
      batch_size: examples of a batch, at most ``N``.

    Raises:
      ValueError: no examples, or a batch larger than the data.

    Example:
      >>> import jax
      >>> from gradkin import gradients
      >>> rows, mask = gradients.FixedSizeSampling(10, 4).sample(jax.random.key(0))
      >>> len(set(rows.tolist())), bool(mask.all())
      (4, True)
    """

    num_examples: int
    batch_size: int

    def __post_init__(self):
        check_size("num_examples", self.num_examples)
        check_size("batch_size", self.batch_size)
        if self.batch_size > self.num_examples:
            raise ValueError(
                f"Expected batch_size <= num_examples, got batch_size={self.batch_size} and "
                f"num_examples={self.num_examples}."
            )

    @property
    def expected_size(self) -> float:
        """The batch size."""
        return float(self.batch_size)

    @property
    def size(self) -> int:
        """The batch size."""
        return self.batch_size

    def sample(self, key: PRNGKey) -> Batch:
        """Draw one batch."""
        rows = jax.random.permutation(key, self.num_examples)[: self.batch_size]
        return Batch(rows, jnp.ones((self.batch_size,), bool))


@dataclasses.dataclass(frozen=True)
class FullBatch:
    """Every step sees all examples: nothing is gained by sampling.

    Args:
      num_examples: size ``N`` of the data set, public.

    Raises:
      ValueError: no examples.

    Example:
      >>> import jax
      >>> from gradkin import gradients
      >>> gradients.FullBatch(3).sample(jax.random.key(0)).rows.tolist()
      [0, 1, 2]
    """

    num_examples: int

    def __post_init__(self):
        check_size("num_examples", self.num_examples)

    @property
    def expected_size(self) -> float:
        """``N``."""
        return float(self.num_examples)

    @property
    def size(self) -> int:
        """``N``."""
        return self.num_examples

    def sample(self, key: PRNGKey) -> Batch:
        """All rows; the key is not used."""
        del key
        return Batch(jnp.arange(self.num_examples), jnp.ones((self.num_examples,), bool))


Sampling = PoissonSampling | FixedSizeSampling | FullBatch


def check_size(name: str, value: int) -> None:
    """Raise ValueError unless ``value`` is a positive integer."""
    if not checks.is_integer(value, least=1):
        raise ValueError(f"Expected {name} to be a positive integer, got {name}={value!r}.")
