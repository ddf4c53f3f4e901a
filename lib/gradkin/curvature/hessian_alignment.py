"""Hessian alignment: domains whose losses bend alike transfer to one another."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float

from gradkin import checks
from gradkin.curvature.head_moments import HeadHessian, HeadMoments
from gradkin.matrices import estimates, lanczos
from gradkin.matrices.floating import floating
from gradkin.matrices.operators import operator, symmetric
from gradkin.typing import Array, IntScalar, PRNGKey, PyTree, Scalar


def hgp_penalty(
    domains: Sequence[HeadMoments],
    *,
    alpha: Scalar = 1.0,
    beta: Scalar = 1.0,
    reduce: str = "mean",
    center: str = "pooled",
) -> Float[Array, ""]:
    """Penalty on gradients and Hessian-gradient products that differ (Hemati et al. 2023, HGP).

    .. math:: \\alpha\\, E_e \\|g_e - g\\|^2 + \\beta\\, E_e \\|H_e g_e - H g\\|^2

    ``g`` and ``H`` are of the loss pooled over the domains, all with equal weight. ``H g`` is
    ``|g|`` times the gradient of ``|g|``; here it is a product with the Hessian, which has a
    derivative where ``g`` is zero.

    Args:
      domains: what the head sees of each domain, from `head_moments` or as described there.
      alpha: weight of the gradients, >= 0.
      beta: weight of the products, >= 0; 0 leaves the penalty of `iga_penalty`.
      reduce: "mean" over the domains, or "sum".
      center: "pooled" compares ``H_e g_e`` with ``H g``; "mean" with the mean of ``H_e g_e``.

    Returns:
      A scalar; 0 for one domain.

    Raises:
      ValueError: no domains, heads that differ, negative weights or unknown options.

    Example:
      >>> import jax.numpy as jnp
      >>> from gradkin import curvature
      >>> one = curvature.HeadMoments(jnp.zeros(()), jnp.array([1.0]), jnp.array([[2.0]]))
      >>> two = curvature.HeadMoments(jnp.zeros(()), jnp.array([3.0]), jnp.array([[2.0]]))
      >>> float(curvature.hgp_penalty([one, two]))  # g: 2 -+ 1, H g: 4 -+ 2
      5.0

    References:
      Hemati, Zhang, Estiri & Chen (2023), "Understanding Hessian Alignment for Domain
      Generalization", arXiv:2308.11778. :cite:`hessian-alignment-dg`

    Note:
      The authors' code for coloured MNIST sums over the domains, with one weight for both terms.
      Mini-batches of domains bias ``|g_e - g|^2`` upwards by the variance of their gradients.
    """
    checks.non_negative(alpha=alpha, beta=beta)
    checks.one_of(("pooled", "mean"), center=center)
    domains = checked(domains)
    grads = [domain.grad for domain in domains]
    grad = mean(grads)
    products = [domain.hessian @ domain.grad for domain in domains]
    if center == "pooled":
        middle = mean([domain.hessian @ grad for domain in domains])
    else:
        middle = mean(products)
    of_grads, of_products = spread(grads, grad, reduce), spread(products, middle, reduce)
    return jnp.multiply(alpha, of_grads) + jnp.multiply(beta, of_products)


def hutchinson_penalty(
    key: PRNGKey | None,
    domains: Sequence[HeadMoments],
    *,
    alpha: Scalar = 1.0,
    beta: Scalar = 1.0,
    num_probes: int | None = None,
    reduce: str = "mean",
) -> Float[Array, ""]:
    """Penalty on gradients and Hessian diagonals that differ (Hemati et al. 2023, Hutchinson).

    .. math:: \\alpha\\, E_e \\|g_e - g\\|^2 + \\beta\\, E_e \\|D_e - D\\|^2

    with the diagonals ``D_e`` of the Hessians and their mean ``D``, estimated as the mean of
    ``z * (H_e z)`` over random signs ``z``, or exact.

    Args:
      key: PRNG key of the signs, which the domains share; unused, and may be None, where
        ``num_probes`` is None.
      domains: what the head sees of each domain, from `head_moments` or as described there.
      alpha: weight of the gradients, >= 0.
      beta: weight of the diagonals, >= 0.
      num_probes: random signs per domain, at least 2; None takes the exact diagonal of linear
        heads, which costs less.
      reduce: "mean" over the domains, or "sum".

    Returns:
      A scalar; 0 for one domain.

    Raises:
      ValueError: no domains, heads that differ, negative weights, fewer than 2 probes or an
        unknown ``reduce``; no key for the probes.
      TypeError: no probes, and a Hessian whose diagonal is not known.

    Example:
      >>> import jax.numpy as jnp
      >>> from gradkin import curvature
      >>> def domain(z):
      ...     z, label = jnp.array([[z]]), jnp.array([0])
      ...     return curvature.head_moments(z, jnp.zeros((1, 2)), label, bias=False)
      >>> domains = [domain(2.0), domain(4.0)]
      >>> float(curvature.hutchinson_penalty(None, domains, alpha=0.0))  # D: 2.5 -+ 1.5, twice
      4.5

    References:
      Hemati, Zhang, Estiri & Chen (2023), arXiv:2308.11778. :cite:`hessian-alignment-dg`

    Note:
      The authors draw signs for each domain. Shared ones leave the noise of ``H_e - H`` alone and
      take out that of ``H``, which all domains have.
    """
    checks.non_negative(alpha=alpha, beta=beta)
    domains = checked(domains)
    if num_probes is None:
        hessians = [domain.hessian for domain in domains]
        if not all(isinstance(hessian, HeadHessian) for hessian in hessians):
            raise TypeError(
                "Expected num_probes, as the exact diagonal is known for Hessians of `head_moments`"
                f" only, got {[type(hessian).__name__ for hessian in hessians]}."
            )
        diagonals = [hessian.diagonal() for hessian in hessians]
    elif key is None:
        raise ValueError(f"Expected a key with num_probes={num_probes}, got key=None.")
    else:
        diagonals = [
            estimates.diagonal(key, domain.hessian, num_matvecs=num_probes).value
            for domain in domains
        ]
    grads = [domain.grad for domain in domains]
    of_grads = spread(grads, mean(grads), reduce)
    of_diagonals = spread(diagonals, mean(diagonals), reduce)
    return jnp.multiply(alpha, of_grads) + jnp.multiply(beta, of_diagonals)


def annealed_loss(
    loss: Scalar,
    penalty: Scalar,
    *,
    step: IntScalar,
    weight: Scalar,
    anneal_steps: IntScalar,
) -> Array:
    """Add a penalty whose weight is 1 at first and then large (Arjovsky et al. 2019, appendix).

    From ``anneal_steps`` on, ``weight`` counts; the sum is divided by a weight above 1, so that
    gradients do not grow with it.

    Args:
      loss: mean loss over the domains, with any weight decay.
      penalty: the penalty.
      step: steps taken so far.
      weight: of the penalty in the end, >= 0.
      anneal_steps: steps with weight 1.

    Returns:
      ``(loss + w penalty) / max(w, 1)``.

    Raises:
      ValueError: a negative weight.

    Example:
      >>> from gradkin import curvature
      >>> at = lambda step: curvature.annealed_loss(
      ...     6.0, 2.0, step=step, weight=4.0, anneal_steps=10
      ... )
      >>> float(at(9)), float(at(10))
      (8.0, 3.5)

    References:
      Arjovsky, Bottou, Gulrajani & Lopez-Paz (2019), "Invariant Risk Minimization",
      arXiv:1907.02893. :cite:`arjovsky:19`
    """
    checks.non_negative(weight=weight)
    loss = floating(loss)
    now = jnp.where(jnp.asarray(step) >= anneal_steps, weight, 1.0).astype(loss.dtype)
    return (loss + now * jnp.asarray(penalty, loss.dtype)) / jnp.maximum(now, 1)


def transfer_gap_bound(
    key: PRNGKey,
    source: Any,
    target: Any,
    *,
    radius: Scalar,
    num_matvecs: int | None = None,
) -> Float[Array, ""]:
    """How much further a step may raise one domain's loss than the other's (Hemati et al. 2023).

    .. math:: \\max_{|u| \\le \\delta} |f_S(\\theta + u) - f_T(\\theta + u)| \\le
        \\tfrac{1}{2} \\delta^2 \\|H_S - H_T\\|_2 + o(\\delta^2)

    where the losses agree at ``theta`` in value and gradient; otherwise for what is left of both
    without their parts of order zero and one. Reached by steps along the top eigenvector.

    Args:
      key: PRNG key of Lanczos' start.
      source: Hessian of one domain: curvature, of a head or an array ``[P, P]``.
      target: Hessian of the other, of the same size.
      radius: of the ball of steps, ``delta``, >= 0.
      num_matvecs: products with the difference, as in `gradkin.curvature.top_eigenpairs`.

    Returns:
      The bound, a scalar.

    Raises:
      ValueError: matrices that differ in size, or a negative radius.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from gradkin import curvature
      >>> source, target = jnp.diag(jnp.array([1.0, 5.0])), jnp.eye(2)
      >>> bound = curvature.transfer_gap_bound(jax.random.key(0), source, target, radius=0.5)
      >>> round(float(bound), 4)
      0.5

    References:
      Hemati, Zhang, Estiri & Chen (2023), arXiv:2308.11778. :cite:`hessian-alignment-dg`
    """
    checks.non_negative(radius=radius)
    source, target = symmetric(source), symmetric(target)
    if source.shape != target.shape:
        raise ValueError(
            f"Expected Hessians of one size, got shapes {source.shape} and {target.shape}."
        )
    difference = Difference(source, target)
    found = lanczos.top_eigenpairs(key, difference, num_matvecs=num_matvecs, which="magnitude")
    norm = jnp.abs(found.values[0])
    return 0.5 * jnp.square(jnp.asarray(radius, norm.dtype)) * norm


class Difference(NamedTuple):
    """Two symmetric matrices of one size, the second taken from the first."""

    left: Any
    right: Any

    @property
    def shape(self) -> tuple[int, int]:
        return self.left.shape

    @property
    def like(self) -> jax.ShapeDtypeStruct:
        op = operator(self.left)
        return jax.ShapeDtypeStruct((op.size,), op.dtype)

    def linear_map(self) -> Callable[[Array], Array]:
        left, right = operator(self.left), operator(self.right)
        return lambda v: left.product(v) - right.product(v)


def checked(domains: Sequence[HeadMoments]) -> list[HeadMoments]:
    """The domains as a list; raise ValueError unless there is one and their heads are alike."""
    domains = list(domains)
    if not domains:
        raise ValueError("Expected at least one domain, got none.")
    for number, domain in enumerate(domains[1:], 1):
        checks.same_structure(
            domain.grad, domains[0].grad, name=f"domain {number}'s grad", like_name="domain 0's"
        )
    return domains


def mean(trees: Sequence[PyTree]) -> PyTree:
    """Mean of pytrees."""
    return jax.tree.map(lambda *leaves: functools.reduce(jnp.add, leaves) / len(leaves), *trees)


def spread(trees: Sequence[PyTree], middle: PyTree, reduce: str) -> Array:
    """Mean or sum over the trees of the squared distance to the middle."""
    checks.one_of(("mean", "sum"), reduce=reduce)

    def square(a: Array, b: Array) -> Array:
        return jnp.sum(jnp.square(a - b))

    total = functools.reduce(
        jnp.add, [x for tree in trees for x in jax.tree.leaves(jax.tree.map(square, tree, middle))]
    )
    return total / len(trees) if reduce == "mean" else total
