"""Other penalties on domains that differ, each a part of what aligned Hessians imply."""

import itertools
from collections.abc import Sequence

import jax.numpy as jnp
from jaxtyping import Float

from gradkin.curvature.head_moments import HeadMoments
from gradkin.curvature.hessian_alignment import checked, mean, spread
from gradkin.matrices.contraction import at_least_float32
from gradkin.matrices.operators import dot
from gradkin.typing import Array


def irm_penalty(domains: Sequence[HeadMoments]) -> Float[Array, ""]:
    """Mean squared derivative of the losses in a factor on the logits (Arjovsky et al. 2019).

    Invariant risk minimisation, "IRMv1": zero where no domain wants the logits scaled.

    Args:
      domains: what the head sees of each domain, from `head_moments`.

    Returns:
      A scalar.

    Raises:
      ValueError: no domains, or without ``scale_grad``.

    Example:
      >>> import jax.numpy as jnp
      >>> from gradkin import curvature
      >>> z = jnp.ones((1, 1))
      >>> domain = curvature.head_moments(z, jnp.zeros((1, 2)), jnp.array([0]))
      >>> float(curvature.irm_penalty([domain]))
      0.0

    References:
      Arjovsky, Bottou, Gulrajani & Lopez-Paz (2019), "Invariant Risk Minimization",
      arXiv:1907.02893, eq. (IRMv1). :cite:`arjovsky:19`
    """
    domains = checked(domains)
    _required(domains, "scale_grad")
    return jnp.mean(jnp.square(jnp.stack([domain.scale_grad for domain in domains])))


def vrex_penalty(domains: Sequence[HeadMoments]) -> Float[Array, ""]:
    """Variance of the losses over domains (Krueger et al. 2021, V-REx).

    Args:
      domains: what the head sees of each domain.

    Returns:
      A scalar; 0 for one domain.

    Raises:
      ValueError: no domains.

    Example:
      >>> import jax.numpy as jnp
      >>> from gradkin import curvature
      >>> domain = lambda loss: curvature.HeadMoments(jnp.asarray(loss), jnp.zeros(1), jnp.eye(1))
      >>> domains = [domain(1.0), domain(3.0)]
      >>> float(curvature.vrex_penalty(domains))
      1.0

    References:
      Krueger, Caballero, Jacobsen, Zhang, Binas, Zhang, Le Priol & Courville (2021),
      "Out-of-Distribution Generalization via Risk Extrapolation (REx)", arXiv:2003.00688.
      :cite:`krueger:21`
    """
    return jnp.var(jnp.stack([domain.loss for domain in checked(domains)]))


def iga_penalty(domains: Sequence[HeadMoments]) -> Float[Array, ""]:
    """Variance of the gradients over domains (Koyama & Yamaguchi 2020, inter-gradient alignment).

    .. math:: E_e \\|g_e - g\\|^2

    Args:
      domains: what the head sees of each domain.

    Returns:
      A scalar; 0 for one domain.

    Raises:
      ValueError: no domains, or heads that differ.

    Example:
      >>> import jax.numpy as jnp
      >>> from gradkin import curvature
      >>> domain = lambda g: curvature.HeadMoments(jnp.zeros(()), jnp.array([g]), jnp.eye(1))
      >>> domains = [domain(1.0), domain(3.0)]
      >>> float(curvature.iga_penalty(domains))
      1.0

    References:
      Koyama & Yamaguchi (2020), "When is invariance useful in an Out-of-Distribution
      Generalization problem?", arXiv:2008.01883. :cite:`koyama:20`

    Note:
      The paper takes the gradient in all parameters; here, as for the other penalties, it is that
      in the head.
    """
    grads = [domain.grad for domain in checked(domains)]
    return spread(grads, mean(grads), "mean")


def fishr_penalty(domains: Sequence[HeadMoments]) -> Float[Array, ""]:
    """Variance over domains of the variance of examples' gradients (Ramé et al. 2022, Fishr).

    .. math:: E_e \\|v_e - v\\|^2, \\qquad v_e = \\mathrm{Var}_{i \\in e}\\, g_i

    Args:
      domains: what the head sees of each domain, from `head_moments`; for other heads
        ``grad_variance`` is ``G.centered().second_moment()`` of `gradkin.per_example_grads`.

    Returns:
      A scalar; 0 for one domain.

    Raises:
      ValueError: no domains, heads that differ, or without ``grad_variance``.

    Example:
      >>> import jax.numpy as jnp
      >>> from gradkin import curvature
      >>> variance = lambda v: {"grad_variance": jnp.array([v])}
      >>> domains = [
      ...     curvature.HeadMoments(jnp.zeros(()), jnp.zeros(1), jnp.eye(1), **variance(v))
      ...     for v in (1.0, 5.0)
      ... ]
      >>> float(curvature.fishr_penalty(domains))
      4.0

    References:
      Ramé, Dancette & Cord (2022), "Fishr: Invariant Gradient Variances for Out-of-Distribution
      Generalization", arXiv:2109.02934. :cite:`rame:22`

    Note:
      The authors smooth the variances over steps; with full batches there is nothing to smooth.
    """
    domains = checked(domains)
    _required(domains, "grad_variance")
    variances = [domain.grad_variance for domain in domains]
    return spread(variances, mean(variances), "mean")


def coral_penalty(domains: Sequence[HeadMoments]) -> Float[Array, ""]:
    """Mean over pairs of domains of the distance of their covariances (Sun & Saenko 2016, CORAL).

    .. math:: \\frac{1}{4 d^2} \\|C_a - C_b\\|_F^2

    Args:
      domains: what the head sees of each domain, from `head_moments`; two examples or more.

    Returns:
      A scalar; 0 for one domain.

    Raises:
      ValueError: no domains, heads that differ, without ``features``, or with one example.

    Example:
      >>> import jax.numpy as jnp
      >>> from gradkin import curvature
      >>> def domain(scale):
      ...     z = scale * jnp.array([[1.0], [-1.0]])  # variance 2 scale^2
      ...     return curvature.head_moments(z, jnp.zeros((2, 2)), jnp.array([0, 1]))
      >>> float(curvature.coral_penalty([domain(1.0), domain(2.0)]))
      9.0

    References:
      Sun & Saenko (2016), "Deep CORAL: Correlation Alignment for Deep Domain Adaptation",
      arXiv:1607.01719, eq. (1). :cite:`sun:16`
    """
    domains = checked(domains)
    _required(domains, "features")
    sizes = [len(domain.features) for domain in domains]
    if min(sizes) < 2:
        raise ValueError(f"Expected at least 2 examples of each domain, got {sizes}.")

    def covariance(features: Array) -> Array:
        features = features.astype(at_least_float32(features.dtype))
        away = features - jnp.mean(features, axis=0, keepdims=True)
        return dot(away.T, away) / (len(away) - 1)

    covariances = [covariance(domain.features) for domain in domains]
    width = len(covariances[0])
    pairs = list(itertools.combinations(covariances, 2))
    if not pairs:
        return jnp.zeros((), covariances[0].dtype)
    distances = [jnp.sum(jnp.square(a - b)) / (4 * width**2) for a, b in pairs]
    return jnp.mean(jnp.stack(distances))


def _required(domains: Sequence[HeadMoments], field: str) -> None:
    for number, domain in enumerate(domains):
        if getattr(domain, field) is None:
            raise ValueError(f"Expected {field} in every domain, got None in domain {number}.")
