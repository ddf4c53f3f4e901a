"""Kernels: functions of two points that know how to fill a tile of a matrix.

Each is an immutable pytree whose parameters are children: differentiable, mapped by `vmap`, changed
without compiling anew. ``kernel(x, y)`` takes two points and returns a scalar;
``kernel.tile(X, Y)`` takes ``[n, ...]`` and ``[m, ...]`` points and returns ``[n, m]``;
``kernel.log_tile(X, Y)``, where there is one, is its logarithm, which does not underflow. Points
may have any shape; they are compared as flat vectors, in float32 or wider.

A kernel of one's own is a plain function of two points or, to be as fast as these, a class with
``tile``, and optionally:

- ``log_tile(X, Y)``: used by ``logsumexp``;
- ``symmetric = True``: allows to evaluate each pair once;
- ``check(shape)``: raises ValueError unless the parameters fit points of that shape;
- ``spectral_scale(key, shape)``: allows random features, see `random_features`.
"""

import dataclasses
import functools
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Float

from gradkin import checks
from gradkin.matrices import distances
from gradkin.pytrees import register_dataclass
from gradkin.typing import Array, ArrayLike, PRNGKey

Points = Any
Tile = Float[Array, "n m"]


@functools.partial(register_dataclass, data_fields=["bandwidth"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class Gaussian:
    """``k(x, y) = exp(-|x - y|^2 / (2 h^2))``.

    Attributes:
      bandwidth: ``h`` > 0, a scalar or one per feature.

    Example:
      >>> import jax.numpy as jnp
      >>> from gradkin import kernels
      >>> round(float(kernels.Gaussian(2.0)(jnp.array([0.0, 0.0]), jnp.array([2.0, 0.0]))), 4)
      0.6065
    """

    bandwidth: Any = 1.0
    symmetric: ClassVar[bool] = True

    def __call__(self, x: ArrayLike, y: ArrayLike) -> Array:
        return distances.at_points(self.tile, x, y)

    def tile(self, X: Points, Y: Points) -> Tile:
        return jnp.exp(self.log_tile(X, Y))

    def log_tile(self, X: Points, Y: Points) -> Tile:
        X, Y, h = scaled(self.bandwidth, X, Y)
        return distances.squared_euclidean(X, Y) * (-0.5 / jnp.square(h))

    def check(self, shape: tuple[int, ...]) -> None:
        check_bandwidth(self.bandwidth, shape)

    def spectral_scale(self, key: PRNGKey, shape: tuple[int, int]) -> Array:
        """Frequencies are normal."""
        return jnp.ones((shape[0], 1))


@functools.partial(register_dataclass, data_fields=["bandwidth"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class Laplacian:
    """``k(x, y) = exp(-|x - y|_1 / h)``, of the sum of absolute differences.

    Attributes:
      bandwidth: ``h`` > 0, a scalar or one per feature.

    Example:
      >>> import jax.numpy as jnp
      >>> from gradkin import kernels
      >>> round(float(kernels.Laplacian(2.0)(jnp.array([0.0, 0.0]), jnp.array([1.0, -1.0]))), 4)
      0.3679
    """

    bandwidth: Any = 1.0
    symmetric: ClassVar[bool] = True

    def __call__(self, x: ArrayLike, y: ArrayLike) -> Array:
        return distances.at_points(self.tile, x, y)

    def tile(self, X: Points, Y: Points) -> Tile:
        return jnp.exp(self.log_tile(X, Y))

    def log_tile(self, X: Points, Y: Points) -> Tile:
        X, Y, h = scaled(self.bandwidth, X, Y)
        return -distances.manhattan(X, Y) / h

    def check(self, shape: tuple[int, ...]) -> None:
        check_bandwidth(self.bandwidth, shape)

    def spectral_scale(self, key: PRNGKey, shape: tuple[int, int]) -> Array:
        """Each feature's frequency is Cauchy: a normal number over another."""
        return 1 / jnp.abs(jax.random.normal(key, shape))


@functools.partial(register_dataclass, data_fields=["bandwidth"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class Exponential:
    """``k(x, y) = exp(-|x - y| / h)``, of the Euclidean distance.

    Its derivative where two points meet is defined as zero.

    Attributes:
      bandwidth: ``h`` > 0, a scalar or one per feature.

    Example:
      >>> import jax.numpy as jnp
      >>> from gradkin import kernels
      >>> round(float(kernels.Exponential(5.0)(jnp.array([0.0, 0.0]), jnp.array([3.0, 4.0]))), 4)
      0.3679
    """

    bandwidth: Any = 1.0
    symmetric: ClassVar[bool] = True

    def __call__(self, x: ArrayLike, y: ArrayLike) -> Array:
        return distances.at_points(self.tile, x, y)

    def tile(self, X: Points, Y: Points) -> Tile:
        return jnp.exp(self.log_tile(X, Y))

    def log_tile(self, X: Points, Y: Points) -> Tile:
        X, Y, h = scaled(self.bandwidth, X, Y)
        return -distances.euclidean(X, Y) / h

    def check(self, shape: tuple[int, ...]) -> None:
        check_bandwidth(self.bandwidth, shape)

    def spectral_scale(self, key: PRNGKey, shape: tuple[int, int]) -> Array:
        """Frequencies are multivariate Cauchy: a normal vector over one normal number."""
        return 1 / jnp.abs(jax.random.normal(key, (shape[0], 1)))


@functools.partial(register_dataclass, data_fields=["bandwidth"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class Cauchy:
    """``k(x, y) = 1 / (1 + |x - y|^2 / h^2)``, also called rational quadratic.

    Attributes:
      bandwidth: ``h`` > 0, a scalar or one per feature.

    Example:
      >>> import jax.numpy as jnp
      >>> from gradkin import kernels
      >>> round(float(kernels.Cauchy(2.0)(jnp.array([0.0, 0.0]), jnp.array([2.0, 0.0]))), 4)
      0.5
    """

    bandwidth: Any = 1.0
    symmetric: ClassVar[bool] = True

    def __call__(self, x: ArrayLike, y: ArrayLike) -> Array:
        return distances.at_points(self.tile, x, y)

    def tile(self, X: Points, Y: Points) -> Tile:
        X, Y, h = scaled(self.bandwidth, X, Y)
        return 1 / (1 + distances.squared_euclidean(X, Y) / jnp.square(h))

    def log_tile(self, X: Points, Y: Points) -> Tile:
        X, Y, h = scaled(self.bandwidth, X, Y)
        return -jnp.log1p(distances.squared_euclidean(X, Y) / jnp.square(h))

    def check(self, shape: tuple[int, ...]) -> None:
        check_bandwidth(self.bandwidth, shape)

    def spectral_scale(self, key: PRNGKey, shape: tuple[int, int]) -> Array:
        """Frequencies are normal of a random size: ``1 / (1 + r) = E exp(-t r)``."""
        return jnp.sqrt(2 * jax.random.exponential(key, (shape[0], 1)))


@functools.partial(register_dataclass, data_fields=[], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class Linear:
    """``k(x, y) = <x, y>``: the Gram matrix of the points."""

    symmetric: ClassVar[bool] = True

    def __call__(self, x: ArrayLike, y: ArrayLike) -> Array:
        return distances.at_points(self.tile, x, y)

    def tile(self, X: Points, Y: Points) -> Tile:
        return distances.product(distances.points(X), distances.points(Y))


@functools.partial(register_dataclass, data_fields=["scale", "offset"], meta_fields=["degree"])
@dataclasses.dataclass(frozen=True)
class Polynomial:
    """``k(x, y) = (a <x, y> + c)^p``.

    Attributes:
      degree: ``p``, an integer >= 1; static.
      scale: ``a``, the factor of the inner product.
      offset: ``c``; positive semidefinite where it is >= 0.

    Example:
      >>> import jax.numpy as jnp
      >>> from gradkin import kernels
      >>> float(kernels.Polynomial(2, offset=1.0)(jnp.array([1.0, 2.0]), jnp.array([2.0, 0.5])))
      16.0
    """

    degree: int = 2
    scale: Any = 1.0
    offset: Any = 0.0
    symmetric: ClassVar[bool] = True

    def __call__(self, x: ArrayLike, y: ArrayLike) -> Array:
        return distances.at_points(self.tile, x, y)

    def tile(self, X: Points, Y: Points) -> Tile:
        products = distances.product(distances.points(X), distances.points(Y))
        return jnp.power(
            like(self.scale, products) * products + like(self.offset, products), self.degree
        )

    def check(self, shape: tuple[int, ...]) -> None:
        if not checks.is_integer(self.degree, least=1):
            raise ValueError(f"Expected degree to be an integer >= 1, got degree={self.degree}.")


@functools.partial(register_dataclass, data_fields=[], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class Cosine:
    """``k(x, y) = <x, y> / (|x| |y|)``; zero where a point is zero, and so is its derivative.

    Example:
      >>> import jax.numpy as jnp
      >>> from gradkin import kernels
      >>> round(float(kernels.Cosine()(jnp.array([1.0, 0.0]), jnp.array([3.0, 4.0]))), 4)
      0.6
    """

    symmetric: ClassVar[bool] = True

    def __call__(self, x: ArrayLike, y: ArrayLike) -> Array:
        return distances.at_points(self.tile, x, y)

    def tile(self, X: Points, Y: Points) -> Tile:
        return distances.product(unit(distances.points(X)), unit(distances.points(Y)))


@functools.partial(register_dataclass, data_fields=[], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class Tanimoto:
    """``k(x, y) = <x, y> / (|x|^2 + |y|^2 - <x, y>)``: on sets, intersection over union.

    Also called the Jaccard index. Of two zero vectors (empty sets) it is zero.

    Example:
      >>> import jax.numpy as jnp
      >>> from gradkin import kernels
      >>> round(float(kernels.Tanimoto()(jnp.array([1.0, 1, 1, 0]), jnp.array([0.0, 1, 1, 1]))), 4)
      0.5
    """

    symmetric: ClassVar[bool] = True

    def __call__(self, x: ArrayLike, y: ArrayLike) -> Array:
        return distances.at_points(self.tile, x, y)

    def tile(self, X: Points, Y: Points) -> Tile:
        return Tversky(1.0, 1.0).tile(X, Y)


@functools.partial(register_dataclass, data_fields=["alpha", "beta"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class Tversky:
    """``k(x, y) = c / (c + alpha (|x|^2 - c) + beta (|y|^2 - c))`` with ``c = <x, y>``.

    Tversky's ratio model: on sets (vectors of zeros and ones) ``c`` counts the common elements and
    the two others those of one side only, so ``alpha != beta`` makes it asymmetric. 1 and 1 is
    `Tanimoto`, 1/2 and 1/2 Dice's coefficient. Where the denominator is zero, so is the value.

    Attributes:
      alpha: weight of what only ``x`` has, >= 0.
      beta: weight of what only ``y`` has, >= 0.

    Example:
      >>> import jax.numpy as jnp
      >>> from gradkin import kernels
      >>> dog, animal = jnp.array([1.0, 1.0, 1.0, 1.0]), jnp.array([1.0, 0.0, 0.0, 0.0])
      >>> kernel = kernels.Tversky(0.1, 0.9)
      >>> round(float(kernel(dog, animal)), 4), round(float(kernel(animal, dog)), 4)
      (0.7692, 0.2703)

    References:
      Tversky (1977), "Features of Similarity", Psychological Review 84, eq. (2). :cite:`tversky:77`
    """

    alpha: Any = 0.5
    beta: Any = 0.5

    def __call__(self, x: ArrayLike, y: ArrayLike) -> Array:
        return distances.at_points(self.tile, x, y)

    def tile(self, X: Points, Y: Points) -> Tile:
        X, Y = distances.points(X), distances.points(Y)
        common = distances.product(X, Y)
        only_x = jnp.sum(jnp.square(X), axis=1, keepdims=True) - common
        only_y = jnp.sum(jnp.square(Y), axis=1)[None, :] - common
        return ratio(common, common + like(self.alpha, X) * only_x + like(self.beta, X) * only_y)

    def check(self, shape: tuple[int, ...]) -> None:
        checks.non_negative(alpha=self.alpha, beta=self.beta)


@functools.partial(register_dataclass, data_fields=[], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class SquaredEuclidean:
    """``k(x, y) = |x - y|^2``: a distance, not a similarity."""

    symmetric: ClassVar[bool] = True

    def __call__(self, x: ArrayLike, y: ArrayLike) -> Array:
        return distances.at_points(self.tile, x, y)

    def tile(self, X: Points, Y: Points) -> Tile:
        return distances.squared_euclidean(distances.points(X), distances.points(Y))


@functools.partial(register_dataclass, data_fields=[], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class Euclidean:
    """``k(x, y) = |x - y|``: a distance; its derivative where two points meet is zero."""

    symmetric: ClassVar[bool] = True

    def __call__(self, x: ArrayLike, y: ArrayLike) -> Array:
        return distances.at_points(self.tile, x, y)

    def tile(self, X: Points, Y: Points) -> Tile:
        return distances.euclidean(distances.points(X), distances.points(Y))


@functools.partial(register_dataclass, data_fields=[], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class Manhattan:
    """``k(x, y) = |x - y|_1``: a distance, the sum of absolute differences."""

    symmetric: ClassVar[bool] = True

    def __call__(self, x: ArrayLike, y: ArrayLike) -> Array:
        return distances.at_points(self.tile, x, y)

    def tile(self, X: Points, Y: Points) -> Tile:
        return distances.manhattan(distances.points(X), distances.points(Y))


def like(value: Any, x: Array) -> Array:
    """A parameter in the dtype of the points."""
    return jnp.asarray(value).astype(x.dtype)


def scaled(bandwidth: Any, X: Points, Y: Points) -> tuple[Array, Array, Array]:
    """Flat points and a scalar bandwidth; one bandwidth per feature divides the points instead."""
    X, Y = distances.points(X), distances.points(Y)
    h = like(bandwidth, X)
    if h.ndim == 0:
        # Not divided out: bandwidths under `vmap` then share the distances.
        return X, Y, h
    h = jnp.ravel(h)[None, :]
    return X / h, Y / h, jnp.ones((), X.dtype)


def check_bandwidth(bandwidth: Any, shape: tuple[int, ...]) -> None:
    """Raise ValueError unless the bandwidth is positive and a scalar or of the points' shape."""
    checks.positive(bandwidth=bandwidth)
    if jnp.shape(bandwidth) not in ((), shape):
        raise ValueError(
            f"Expected bandwidth to be a scalar or to have the shape of a point, {shape}, got "
            f"bandwidth.shape={jnp.shape(bandwidth)}."
        )


def unit(x: Array) -> Array:
    """Rows of norm one; a zero row stays zero."""
    squares = jnp.sum(jnp.square(x), axis=1, keepdims=True)
    zero = squares == 0
    return x * jnp.where(zero, 0, jax.lax.rsqrt(jnp.where(zero, 1, squares)))


def ratio(a: Array, b: Array) -> Array:
    """``a / b``; zero where ``b`` is."""
    zero = b == 0
    return jnp.where(zero, 0, a / jnp.where(zero, 1, b))
