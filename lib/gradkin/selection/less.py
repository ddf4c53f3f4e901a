"""LESS: the examples whose training lowers the loss of a target, by low-rank gradient similarity.

Features of the whole pool are arrays here. Where they are too many, `gradkin.store` keeps them:
rows of `gradient_features` of each checkpoint, searched by `GradientStore.top_k` for the vectors of
`less_queries` with ``metric="normalized", largest_of_queries=True``.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import ArrayLike, Float, Int

from gradkin import checks
from gradkin.gradients.adam_direction import adam_moments, adam_options
from gradkin.gradients.gradient_features import features, num_examples, unit_rows
from gradkin.matrices import contraction, products, sketching
from gradkin.selection.warm_up import Checkpoints, check_optimizer, fraction_of, warm_up
from gradkin.typing import Array, PRNGKey, PyTree, Scalar

MEANS = ("gradient", "cosine")
METRICS = ("cosine", "dot")


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


def less_queries(
    validation: Float[ArrayLike, "checkpoints queries dim"],
    *,
    subtasks: Int[ArrayLike, " queries"] | None = None,
    num_subtasks: int | None = None,
    validation_mean: str = "gradient",
) -> Float[Array, "checkpoints subtasks dim"]:
    """One vector for each subtask, whose products with rows of norm 1 LESS adds up.

    Args:
      validation: features of validation examples, ``[C, m, k]``.
      subtasks: which subtask each belongs to, ``[m]`` from 0; None for one subtask.
      num_subtasks: ``J``; needed where ``subtasks`` are traced.
      validation_mean: "gradient", the mean of a subtask's features divided by its norm (the
        paper); "cosine", the mean of the features divided by theirs (its released code).

    Returns:
      ``[C, J, k]``; zeros for a subtask whose features are zero.

    Raises:
      TypeError: features that are not floating-point numbers.
      ValueError: shapes that do not fit, a subtask without examples, or another mean.

    Example:
      >>> import jax.numpy as jnp
      >>> from gradkin import selection
      >>> validation = jnp.array([[[9.0, 0.0], [0.0, 1.0], [0.0, 3.0]]])
      >>> selection.less_queries(validation, subtasks=jnp.array([0, 1, 1])).tolist()
      [[[1.0, 0.0], [0.0, 1.0]]]

    References:
      Xia et al. (2024), arXiv:2402.04333, sec. 4.2. :cite:`less-data-selection`
    """
    checks.rank(3, validation=validation)
    _floating(validation=validation)
    checks.one_of(MEANS, validation_mean=validation_mean)
    subtasks, count = _subtasks(subtasks, num_subtasks, np.shape(validation)[1])
    return _queries(
        jnp.asarray(validation), subtasks, count=count, mean=validation_mean, metric="cosine"
    )


def less_scores(
    train: Float[ArrayLike, "checkpoints examples dim"],
    validation: Float[ArrayLike, "checkpoints queries dim"],
    learning_rates: Float[ArrayLike, " checkpoints"],
    *,
    subtasks: Int[ArrayLike, " queries"] | None = None,
    num_subtasks: int | None = None,
    validation_mean: str = "gradient",
    metric: str = "cosine",
) -> Float[Array, " examples"]:
    """How much training on each example lowers the loss of the target (Xia et al. 2024, def. 3.1).

    .. math:: s(z) = \\max_j \\sum_i \\bar\\eta_i \\cos(\\bar g_{ij}, f_i(z))

    with the features ``f_i(z)`` of training examples and the mean features ``g_ij`` of subtask
    ``j``, both under checkpoint ``i``. Longer sequences have shorter gradients; cosines do not
    see it.

    Args:
      train: features of the pool, ``[C, n, k]``, from Adam's directions.
      validation: features of the target's examples, ``[C, m, k]``, from plain gradients.
      learning_rates: weights of the checkpoints, ``[C]``, finite, >= 0 and not all zero.
      subtasks: which subtask each validation example belongs to, ``[m]`` from 0; None for one.
      num_subtasks: ``J``; needed where ``subtasks`` are traced.
      validation_mean: "gradient", the cosine of the mean (the paper); "cosine", the mean of the
        cosines with each validation example, and rates divided by their sum (its released code).
      metric: "cosine"; or "dot", inner products, for comparison.

    Returns:
      ``[n]``. A row of zeros, such as that of an example without tokens to predict, scores 0. NaN
      in a row is NaN in its score; in validation, in all.

    Raises:
      TypeError: features that are not floating-point numbers.
      ValueError: checkpoints or dimensions that differ, rates that are negative, not finite or all
        zero, a subtask without examples, or other options.

    Note:
      A subtask without examples that cannot be noticed, because ``subtasks`` are traced, counts
      for nothing.

    Example:
      >>> import jax.numpy as jnp
      >>> from gradkin import selection
      >>> train = jnp.array([[[2.0, 0.0], [0.0, 5.0], [-1.0, 0.0], [0.0, 0.0]]])
      >>> target = jnp.array([[[1.0, 0.0], [3.0, 0.0]]])
      >>> selection.less_scores(train, target, jnp.ones(1)).tolist()
      [1.0, 0.0, -1.0, 0.0]

    References:
      Xia et al. (2024), "LESS: Selecting Influential Data for Targeted Instruction Tuning",
      arXiv:2402.04333, def. 3.1 and sec. 4.2. :cite:`less-data-selection`
    """
    checks.rank(3, train=train, validation=validation)
    _floating(train=train, validation=validation)
    checks.one_of(MEANS, validation_mean=validation_mean)
    checks.one_of(METRICS, metric=metric)
    if metric == "dot" and validation_mean != "gradient":
        raise ValueError("Expected validation_mean='gradient' with metric='dot', got 'cosine'.")
    ours, theirs = np.shape(train), np.shape(validation)
    if ours[0] != theirs[0] or ours[2] != theirs[2]:
        raise ValueError(
            "Expected features of the same checkpoints and dimension, got "
            f"train.shape={ours} and validation.shape={theirs}."
        )
    if not ours[1]:
        raise ValueError(f"Expected train to hold an example, got train.shape={ours}.")
    if np.shape(learning_rates) != (ours[0],):
        raise ValueError(
            f"Expected {ours[0]} learning_rates, one per checkpoint, got shape "
            f"{np.shape(learning_rates)}."
        )
    if checks.is_concrete(learning_rates):
        rates = np.asarray(learning_rates)
        if not (np.all(np.isfinite(rates)) and np.all(rates >= 0) and np.any(rates > 0)):
            raise ValueError(
                "Expected finite learning_rates that are >= 0 and not all zero, got "
                f"learning_rates={rates.tolist()}."
            )
    subtasks, count = _subtasks(subtasks, num_subtasks, theirs[1])
    return _scores(
        jnp.asarray(train),
        jnp.asarray(validation),
        jnp.asarray(learning_rates),
        subtasks,
        count=count,
        mean=validation_mean,
        metric=metric,
    )


def select_top_fraction(
    scores: Float[ArrayLike, " examples"], fraction: float | int
) -> Int[Array, " selected"]:
    """The share of examples with the highest scores.

    Args:
      scores: ``[n]``.
      fraction: in (0, 1]; ``fraction * n`` is rounded to the nearest whole number, at least one.

    Returns:
      Their numbers, best first; of equal scores the first.

    Raises:
      ValueError: another fraction; no scores; or, where scores can be read, NaN among them (else
        NaN comes last).

    Example:
      >>> import jax.numpy as jnp
      >>> from gradkin import selection
      >>> selection.select_top_fraction(jnp.array([0.1, 0.9, 0.5, 0.9]), 0.5).tolist()
      [1, 3]
    """
    checks.rank(1, scores=scores)
    if not np.size(scores):
        raise ValueError("Expected at least one score, got none.")
    count = fraction_of(fraction, np.shape(scores)[0])
    if checks.is_concrete(scores):
        bad = int(np.isnan(np.asarray(scores)).sum())
        if bad:
            first = int(np.argmax(np.isnan(np.asarray(scores))))
            raise ValueError(
                f"Expected scores without NaN, got {bad} of {np.size(scores)}, first of example "
                f"{first}: NaN or infinity in its features, or in those of validation."
            )
    return _top(jnp.asarray(scores), count=count)


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
    subtasks, num_subtasks = _subtasks(
        subtasks, num_subtasks, num_examples(validation, "validation")
    )
    adam_options(b1, b2, eps, bias_correction, eps_inside_sqrt)
    if sketch is not None:
        sketching.check_sketch(sketch)
    if feature_batch_size is not None and not checks.is_integer(feature_batch_size, least=1):
        raise ValueError(
            f"Expected feature_batch_size to be a positive integer, got {feature_batch_size!r}."
        )
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


def _floating(**features: Any) -> None:
    for name, values in features.items():
        if not jnp.issubdtype(jnp.result_type(values), jnp.floating):
            raise TypeError(
                f"Expected {name} of floating-point numbers, got dtype {jnp.result_type(values)}."
            )


def _subtasks(subtasks: Any, num_subtasks: int | None, m: int) -> tuple[Array, int]:
    """The subtask of every validation example, and how many subtasks there are."""
    if subtasks is None:
        subtasks = np.zeros(m, np.int32)
    if np.shape(subtasks) != (m,):
        raise ValueError(
            f"Expected subtasks of shape ({m},), one per validation example, got "
            f"{np.shape(subtasks)}."
        )
    if not checks.is_concrete(subtasks):
        if num_subtasks is None:
            raise ValueError("Expected num_subtasks where subtasks are traced, got None.")
        return jnp.asarray(subtasks), num_subtasks
    found = np.asarray(subtasks)
    if not np.issubdtype(found.dtype, np.integer):
        raise ValueError(f"Expected subtasks to be integers, got {found.dtype}.")
    count = int(found.max(initial=-1)) + 1 if num_subtasks is None else num_subtasks
    sizes = np.bincount(found, minlength=count) if np.all(found >= 0) else np.zeros(0, int)
    if len(sizes) != count or count == 0 or not sizes.all():
        raise ValueError(
            f"Expected subtasks from 0 to {count - 1}, each with an example, got "
            f"{sorted(set(found.tolist()))}."
        )
    return jnp.asarray(found.astype(np.int32)), count


@functools.partial(jax.jit, static_argnames=("count", "mean", "metric"), inline=True)
def _queries(validation: Array, subtasks: Array, *, count: int, mean: str, metric: str) -> Array:
    rows = validation.astype(contraction.at_least_float32(validation.dtype))
    if mean == "cosine":
        rows = unit_rows(rows)
    # A sum over segments: NaN of one subtask is no other's.
    sums = jax.vmap(lambda x: jax.ops.segment_sum(x, subtasks, num_segments=count))(rows)
    sizes = _sizes(subtasks, count).astype(rows.dtype)[None, :, None]
    means = sums / jnp.maximum(sizes, 1)
    return unit_rows(means) if metric == "cosine" and mean == "gradient" else means


@functools.partial(jax.jit, static_argnames=("count", "mean", "metric"), inline=True)
def _scores(
    train: Array,
    validation: Array,
    rates: Array,
    subtasks: Array,
    *,
    count: int,
    mean: str,
    metric: str,
) -> Array:
    queries = _queries(validation, subtasks, count=count, mean=mean, metric=metric)
    dtype = np.promote_types(contraction.at_least_float32(train.dtype), queries.dtype)
    rates = rates.astype(dtype)
    if mean == "cosine":
        rates = rates / jnp.sum(rates)

    def add(total: Array, checkpoint: Any) -> tuple[Array, None]:
        rows, ours, rate = checkpoint
        rows = rows.astype(dtype)
        rows = unit_rows(rows) if metric == "cosine" else rows
        return total + rate * jnp.matmul(rows, ours.T, precision=products.HIGHEST), None

    start = jnp.zeros((train.shape[1], count), dtype)
    influence, _ = jax.lax.scan(add, start, (train, queries.astype(dtype), rates))
    there = (_sizes(subtasks, count) > 0)[None]
    return jnp.max(jnp.where(there, influence, -jnp.inf), axis=1)


def _sizes(subtasks: Array, count: int) -> Array:
    """How many validation examples each subtask has."""
    return jax.ops.segment_sum(jnp.ones_like(subtasks), subtasks, num_segments=count)


@functools.partial(jax.jit, static_argnames="count", inline=True)
def _top(scores: Array, *, count: int) -> Array:
    return jax.lax.top_k(jnp.where(jnp.isnan(scores), -jnp.inf, scores), count)[1]
