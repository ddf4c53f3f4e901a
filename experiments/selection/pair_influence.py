"""Influence of pairs, measured otherwise: by training on, and by gradients of all parameters."""

import jax
import jax.numpy as jnp
import numpy as np

from experiments.selection.paired_concepts import adam, batches, descend, mean_loss, trunk
from gradkin import gradients, selection

DAMPINGS = (1e-3, 1e-1, 1.0)  # the first is the method's
EXTRA = 0.1  # weight of one pair's loss beside the mean loss of a batch


def effects(config, key, heads, made):
    """How much lower the loss of the target ends where a pair has weighed more.

    For each rate and each of some pairs.
    """
    optimizer = adam(config.effect_steps)
    count = config.compared // config.batch
    ours = batches(jax.tree.map(lambda x: x[: config.compared], made["pool"]), config.batch)
    draws = jax.random.randint(key, (config.effect_steps, config.batch), 0, config.pool)

    def trained(number, weight, rate):
        """With the extra weight on pair ``number`` in its own batch."""
        batch = jax.tree.map(lambda x: x[number // config.batch], ours)
        i = number % config.batch

        def step(state, draw):
            few = jax.tree.map(lambda x: x[draw], made["pool"])

            def loss(heads):
                x, y = selection.endpoint_embeddings(heads, *batch)
                scale = jnp.exp(heads.log_scale)
                rows, columns = scale * (y @ x[i]), scale * (x @ y[i])
                own = (jax.nn.logsumexp(rows) + jax.nn.logsumexp(columns)) / 2 - rows[i]
                return mean_loss(heads, few) + weight * own

            here, opt_state = state
            return descend(optimizer, here, opt_state, loss, rate), None

        state, _ = jax.lax.scan(step, (heads, optimizer.init(heads)), draws)
        of = lambda pairs: mean_loss(state[0], pairs)
        return jnp.mean(jax.vmap(of)(batches(made["target"], config.batch)))

    def lowered(given):
        numbers, rate = given
        numbers = jnp.concatenate([numbers[:1], numbers])
        weights = jnp.full(len(numbers), EXTRA).at[0].set(0)
        losses = jax.vmap(trained, (0, 0, None))(numbers, weights, rate)
        return losses[0] - losses[1:]

    numbers = jnp.arange(count * config.batch).reshape((count, config.batch))
    numbers = jnp.concatenate([numbers] * len(config.rates))
    rates = np.repeat(np.float32(config.rates), count)
    return jax.lax.map(lowered, (numbers, rates)).reshape((len(config.rates), -1))


def compare(config, key, heads, made):
    """Alignments by sketched and whole end-point gradients and by gradients of all parameters.

    Of some pairs of the pool, which also make up the curvature; ``[3, alpha and damping, pairs]``.
    """
    everything = {"heads": heads, "trunks": made["trunks"]}

    def parts(params, pairs):
        """Terms whose gradients are the two parts of the gradient of every pair's loss."""
        encoded = [trunk(params["trunks"][n], x) for n, x in zip(("image", "text"), pairs)]
        x, y = selection.endpoint_embeddings(params["heads"], *encoded)
        logits = jnp.exp(params["heads"].log_scale) * (x @ y.T)
        fixed = jax.lax.stop_gradient(logits)
        p, q = jax.nn.softmax(fixed, axis=1), jax.nn.softmax(fixed, axis=0)
        own = jnp.diagonal(logits)
        positive = -(2 - jnp.diagonal(p) - jnp.diagonal(q)) / 2 * own
        others = jnp.sum(p * logits, axis=1) + jnp.sum(q * logits, axis=0)
        return positive, others / 2 - (jnp.diagonal(p) + jnp.diagonal(q)) / 2 * own

    def rows(pairs):
        """Both parts of all gradients, ``[2, pairs, ...]`` at each leaf."""

        def one(batch):
            found = jax.jacrev(lambda params: jnp.stack(parts(params, batch)))(everything)
            return jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), found)

        found = jax.lax.map(one, batches(pairs, config.batch))
        join = lambda x: jnp.swapaxes(x.reshape((-1, *x.shape[2:])), 0, 1)
        return jax.tree.map(join, found)

    count = config.compared
    joined = [jnp.concatenate(x) for x in zip(made["raw"]["pool"], made["raw"]["target"])]
    found = rows(joined)
    both = jax.tree.map(lambda x: x[:, :count], found)
    wanted = jax.tree.map(lambda x: jnp.mean(jnp.sum(x[:, count:], 0), 0)[None], found)
    all_rows = jax.tree.map(
        lambda x, u: jnp.concatenate([x.reshape((2 * count, *x.shape[2:])), u]), both, wanted
    )
    flat = lambda tree: jnp.concatenate(
        [x.reshape((2 * count + 1, -1)) for x in jax.tree.leaves(tree)], axis=1
    )
    sketch = gradients.RademacherSketch(key, config.size)
    sketched = gradients.project_rows(sketch, all_rows["heads"])
    spaces = [sketched, flat(all_rows["heads"]), flat(all_rows)]

    def coordinates(gram):
        """Rows of as many entries as there are rows, with the same inner products."""
        values, vectors = jnp.linalg.eigh(gram)
        return vectors * jnp.sqrt(jnp.maximum(values, 0))[None, :]

    def within(gram):
        x = coordinates(gram)
        positive, negative, target = x[:count], x[count : 2 * count], x[-1]
        moments = [part.T @ part / count for part in (positive, negative)]

        def one(setting):
            alpha, damping = setting
            M = (1 - alpha) * moments[0] + alpha * moments[1]
            # The same shift as with the sketch's number of rows.
            damping = damping * (len(x) / config.size)
            return selection.newton_alignment(positive + negative, target, M, damping=damping)

        grid = np.array([(a, d) for a in (config.alpha, 0.0) for d in DAMPINGS], np.float32)
        aligned = jax.lax.map(one, (grid[:, 0], grid[:, 1]))
        plain = (positive + negative) @ target
        return jnp.concatenate([aligned, plain[None]])

    # One after another: factorizations at once can wait for each other.
    return jax.lax.map(within, jnp.stack([x @ x.T for x in spaces]))


def ranks(values):
    return jnp.argsort(jnp.argsort(values, axis=-1), axis=-1).astype(jnp.float32)


def spearman(a, b):
    """Along the last axis."""
    a, b = (x - jnp.mean(x, axis=-1, keepdims=True) for x in map(ranks, (a, b)))
    return jnp.sum(a * b, axis=-1) / jnp.sqrt(jnp.sum(a**2, axis=-1) * jnp.sum(b**2, axis=-1))


def auroc(scores, positive, among):
    """Probability that a positive has a higher score than another one, of those that count."""
    positive = positive & among
    number = lambda x: jnp.sum(x.astype(jnp.float32))
    ours, others = number(positive), number(among & ~positive)
    places = ranks(jnp.where(among, scores, -jnp.inf)) - number(~among)
    total = jnp.sum(jnp.where(positive, places, 0)) - ours * (ours - 1) / 2
    return total / (ours * others)
