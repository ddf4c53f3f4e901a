"""LESS: the examples whose training lowers the loss of a target, by low-rank gradient similarity.

Features of the whole pool are arrays here. Where they are too many, `gradkin.store` keeps them:
rows of `gradient_features` of each checkpoint, searched by `GradientStore.top_k` for the vectors of
`less_queries` with ``metric="normalized", largest_of_queries=True``.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import optax
from jaxtyping import ArrayLike, Float, Int

from gradkin import checks
from gradkin.gradients.adam_direction import adam_moments, adam_options
from gradkin.gradients.gradient_features import features, num_examples
from gradkin.matrices import sketching
from gradkin.selection.less_scores import MEANS, less_scores, select_top_fraction, subtasks_of
from gradkin.selection.warm_up import Checkpoints, check_optimizer, fraction_of, warm_up
from gradkin.typing import Array, PRNGKey, PyTree, Scalar


class Less(NamedTuple):
    """What `less` found.

    Attributes:
      indices: of the selected examples, best first.
      scores: of all examples of the pool, ``[n]``.
      checkpoints: of the warm-up.
    """

    indices: Array
    scores: Array
    checkpoints: Checkpoints


def less_features(
    loss_fn: Callable[..., Any],
    checkpoints: Checkpoints,
    batch: PyTree,
    *,
    sketch: Any,
    direction: str = "adam",
    batch_size: int | None = None,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    bias_correction: bool = True,
    eps_inside_sqrt: bool = False,
) -> Float[Array, "checkpoints examples dim"]:
    """Features of examples under every checkpoint, with one sketch for all (Xia et al. 2024).

    Training examples are seen as Adam's direction, validation examples as their plain gradient.

    Args:
      loss_fn: ``loss_fn(params, example)`` -> scalar. Frozen parameters that it closes over would
        be constants of the compiled program, which would be compiled again for every new
        ``loss_fn``: under adapters, call `warm_up`, this and `less` inside a `jax.jit` that takes
        them as arguments, and make ``loss_fn`` there, as in the second example.
      checkpoints: as from `warm_up`.
      batch: ``n`` examples, batched.
      sketch: a sketch such as `RademacherSketch`, the same for training and validation; None for
        all numbers of the direction.
      direction: "adam" (training), "gradient" (validation) or "sign"; see `gradient_features`.
      batch_size: examples whose gradients exist at a time; None for all.
      b1: see `adam_direction`.
      b2: see `adam_direction`.
      eps: see `adam_direction`.
      bias_correction: see `adam_direction`.
      eps_inside_sqrt: see `adam_direction`.

    Returns:
      ``[C, n, k]``.

    Raises:
      TypeError: ``sketch`` is no sketch.
      ValueError: as `gradient_features`; or "adam" where the checkpoints have no moments.

    Example:
      >>> import jax, jax.numpy as jnp, optax
      >>> from gradkin import gradients, selection
      >>> loss = lambda w, x: jnp.sum((w - x) ** 2)
      >>> pool = jax.random.normal(jax.random.key(0), (40, 3))
      >>> checkpoints, _ = selection.warm_up(
      ...     jax.random.key(1), loss, jnp.zeros(3), pool,
      ...     optimizer=optax.adam(0.1), learning_rate=0.1, epochs=2, batch_size=2,
      ... )
      >>> sketch = gradients.RademacherSketch(jax.random.key(2), 8)
      >>> selection.less_features(loss, checkpoints, pool, sketch=sketch).shape
      (2, 40, 8)

      With adapters, here of a matrix; of a Flax model ``loss_fn`` merges ``graph``, ``adapters``
      and ``frozen`` (see `gradkin.models.add_lora`). The program is compiled once for all models of
      these sizes:

      >>> @jax.jit
      ... def features_of(key, adapters, frozen, pool):
      ...     def loss_fn(adapters, x):
      ...         weight = frozen + adapters["a"] @ adapters["b"]
      ...         return jnp.sum((weight @ x) ** 2)
      ...     checkpoints, _ = selection.warm_up(
      ...         key, loss_fn, adapters, pool,
      ...         optimizer=optax.adam(0.1), learning_rate=0.1, epochs=2, batch_size=2,
      ...     )
      ...     return selection.less_features(loss_fn, checkpoints, pool, sketch=sketch)
      >>> adapters = {"a": jnp.ones((3, 1)), "b": jnp.zeros((1, 3))}
      >>> features_of(jax.random.key(1), adapters, jnp.eye(3), pool).shape
      (2, 40, 8)

    References:
      Xia et al. (2024), arXiv:2402.04333, sec. 4.1. :cite:`less-data-selection`
    """
    if direction == "adam" and checkpoints.moments is None:
        raise ValueError("Expected checkpoints with Adam's moments for direction='adam', got None.")

    return features(
        loss_fn,
        checkpoints.params,
        batch,
        sketch=sketch,
        direction=direction,
        moments=checkpoints.moments,
        normalize=False,
        batch_size=batch_size,
        options=adam_options(b1, b2, eps, bias_correction, eps_inside_sqrt),
        stacked=True,
    )


def less(
    key: PRNGKey,
    loss_fn: Callable[..., Any],
    params: PyTree,
    pool: PyTree,
    validation: PyTree,
    *,
    optimizer: optax.GradientTransformation,
    learning_rate: Scalar | Callable[..., Any],
    sketch: Any,
    batch_size: int,
    subtasks: Int[ArrayLike, " queries"] | None = None,
    num_subtasks: int | None = None,
    fraction: float | int = 0.05,
    warm_up_fraction: float | int = 0.05,
    epochs: int = 4,
    feature_batch_size: int | None = None,
    validation_mean: str = "gradient",
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    bias_correction: bool = True,
    eps_inside_sqrt: bool = False,
    sharding: jax.sharding.NamedSharding | None = None,
) -> Less:
    """Select the data to train on for a target task: LESS from beginning to end (Xia et al. 2024).

    `warm_up`, `less_features` of pool and target, `less_scores`, `select_top_fraction`.

    Args:
      key: PRNG key of the warm-up.
      loss_fn: ``loss_fn(params, example)`` -> scalar, of the model that selects, which may be
        smaller than the one to be trained. Where it closes over frozen parameters, see
        `less_features`.
      params: where its training starts; for adapters theirs alone.
      pool: ``n`` examples to choose from, batched.
      validation: ``m`` examples of the target, batched, a few for each subtask.
      optimizer: Adam in any form of optax, with its schedule.
      learning_rate: what ``optimizer`` uses: a number, or its schedule ``step -> rate``.
      sketch: such as ``RademacherSketch(key, 8192)``.
      batch_size: examples of a step of the warm-up.
      subtasks: see `less_scores`.
      num_subtasks: see `less_scores`.
      fraction: share of the pool that is selected.
      warm_up_fraction: share of the pool that the warm-up is on.
      epochs: of the warm-up; each gives a checkpoint.
      feature_batch_size: examples whose gradients exist at a time; None for all.
      validation_mean: see `less_scores`.
      b1: see `adam_direction`. This, ``b2`` and ``eps`` are to be those of ``optimizer``, which
        cannot be asked for them.
      b2: see ``b1``.
      eps: see ``b1``.
      bias_correction: see `adam_direction`.
      eps_inside_sqrt: see `adam_direction`.
      sharding: of the warm-up's batches; see `warm_up`.

    Returns:
      `Less`.

    Raises:
      ValueError: an optimizer without Adam's moments; else as the functions it is made of, before
        anything is trained.

    Note:
      The released code is ``validation_mean="cosine", bias_correction=False,
      eps_inside_sqrt=True``. `optax.nadam` and `optax.adamax` have moments too; the direction is
      Adam's all the same.

    Example:
      >>> import jax, jax.numpy as jnp, optax
      >>> from gradkin import gradients, selection
      >>> loss = lambda w, x: -(w @ x)
      >>> first = jnp.arange(200) < 100  # two kinds of examples
      >>> noise = 0.1 * jax.random.normal(jax.random.key(0), (200, 2))
      >>> x = jnp.stack([first, ~first], axis=1).astype(float) + noise
      >>> found = selection.less(
      ...     jax.random.key(1), loss, jnp.zeros(2), x, x[:5], optimizer=optax.adam(1e-2),
      ...     learning_rate=1e-2, sketch=gradients.RademacherSketch(jax.random.key(2), 64),
      ...     batch_size=5,
      ... )
      >>> bool(jnp.all(found.indices < 100))
      True

    References:
      Xia et al. (2024), "LESS: Selecting Influential Data for Targeted Instruction Tuning",
      arXiv:2402.04333. :cite:`less-data-selection`
    """
    # Before the training, which may take hours; it checks its own options first.
    checks.one_of(MEANS, validation_mean=validation_mean)
    size = num_examples(pool, "pool")
    fraction_of(fraction, size)
    fraction_of(warm_up_fraction, size, name="warm_up_fraction")
    check_optimizer(optimizer)
    if jax.tree.structure(pool) != jax.tree.structure(validation):
        raise ValueError(
            "Expected validation to have the tree structure of pool, got "
            f"{jax.tree.structure(validation)} and {jax.tree.structure(pool)}."
        )
    if not callable(learning_rate):
        checks.positive(learning_rate=learning_rate)
    subtasks, num_subtasks = subtasks_of(
        subtasks, num_subtasks, num_examples(validation, "validation")
    )
    adam_options(b1, b2, eps, bias_correction, eps_inside_sqrt)
    if sketch is not None:
        sketching.check_sketch(sketch)
    if feature_batch_size is not None:
        checks.positive_integer(feature_batch_size=feature_batch_size)
    adam_moments(jax.eval_shape(optimizer.init, params), params)

    checkpoints, _ = warm_up(
        key,
        loss_fn,
        params,
        pool,
        optimizer=optimizer,
        learning_rate=learning_rate,
        fraction=warm_up_fraction,
        epochs=epochs,
        batch_size=batch_size,
        sharding=sharding,
    )
    features_of = functools.partial(
        less_features, loss_fn, checkpoints, sketch=sketch, batch_size=feature_batch_size
    )
    train = features_of(
        pool,
        b1=b1,
        b2=b2,
        eps=eps,
        bias_correction=bias_correction,
        eps_inside_sqrt=eps_inside_sqrt,
    )
    scores = less_scores(
        train,
        features_of(validation, direction="gradient"),
        checkpoints.learning_rates,
        subtasks=subtasks,
        num_subtasks=num_subtasks,
        validation_mean=validation_mean,
    )
    return Less(select_top_fraction(scores, fraction), scores, checkpoints)
