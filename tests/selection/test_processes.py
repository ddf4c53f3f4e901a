"""Every stage of data selection on examples spread over devices, and over two processes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from gradkin import gradients, selection
from tests import two_processes

SIZE = 16
PROGRAM = """
    from tests.selection.test_processes import arguments, checked, compiled

    half = slice(8 * rank, 8 * rank + 8)
    rows, everywhere = NamedSharding(mesh, P("data")), NamedSharding(mesh, P())
    split = lambda x: jax.make_array_from_process_local_data(rows, x[half])
    pool = {name: split(x) for name, x in arguments().items()}
    # Outside `jit`, too, where checks read what they can.
    found = compiled(out_shardings=everywhere)(pool), checked(pool)
    result(jax.jit(lambda tree: tree, out_shardings=everywhere)(found))
"""


def arguments():
    """A pool of examples, as NumPy arrays."""
    rng = np.random.default_rng(0)
    normal = lambda *shape: rng.normal(size=(SIZE, *shape)).astype(np.float32)
    return {
        "points": normal(5),
        "scores": normal(3) + 2 * normal(1),
        "quality": normal(),
        "labels": np.arange(SIZE, dtype=np.int32) % 3,
        "lengths": rng.integers(1, 9, SIZE).astype(np.int32),
        "logits": normal(4, 6),
        "images": normal(4),
        "texts": normal(4),
    }


def diverse(pool):
    """Farthest points, and a sequence of them only."""
    kept = selection.farthest_first(pool["points"], 5)
    sequence = selection.prune_sequence(pool["points"], kept, visual=(2, SIZE))
    return kept, sequence, selection.max_min_distance(pool["points"], kept)


def clustered(pool):
    """k-means, the best of each cluster, and what the clusters weigh after that."""
    key = jax.random.key(0)
    found = selection.k_means(key, pool["points"], 3, num_steps=5, num_restarts=1)
    labels, quality = pool["labels"], pool["quality"]
    chosen = selection.k_means_quality(key, labels, quality, 6, num_clusters=3)
    weights = selection.update_weights(jnp.full(3, 1 / 3), labels, quality, chosen)
    return found.centroids, found.sizes, chosen, weights


def useful(pool):
    """Examples of a batch by their logits."""
    key = jax.random.key(1)
    projection = selection.init_bilinear_projection(key, time=4, vocabulary=6, rows=2, columns=3)
    memory = selection.push(selection.init_memory(9, 6), jax.random.normal(key, (2, 6)))
    return selection.utility_diversity_select(memory, projection, pool["logits"], 3, alpha=0.1)


def by_axes(pool):
    """Decorrelated scores, predicted from features; the best along each axis."""
    axes = selection.decorrelate_scores(pool["scores"], num_axes=2)
    scorers = selection.fit_scorers(
        pool["points"], selection.project_scores(axes, pool["scores"]), l2=0.5
    )
    predicted = selection.predict_scores(scorers, pool["points"])
    found = selection.select_by_axes(predicted, 40, lengths=pool["lengths"], both_ends=(1,))
    return predicted, found, selection.overlap_matrix(found.sets)


def influential(pool):
    """Pairs by their influence on the first of them."""
    heads = jax.random.normal(jax.random.key(2), (2, 4, 3))
    heads = selection.EndpointHeads(heads[0], heads[1], jnp.ones(()))
    sketch = gradients.RademacherSketch(jax.random.key(3), 8)
    images, texts = pool["images"], pool["texts"]
    features = selection.pair_features(heads, images, texts, batch_size=4, sketch=sketch)
    of_target = jax.tree.map(lambda x: x[:4] if len(x) == SIZE else x, features)
    return selection.chips(features, of_target).utility


def mixed(pool):
    """Copies of documents by their rank in their domain."""
    domain, lengths = pool["labels"], pool["lengths"]
    one = jnp.ones(3)
    params = selection.MixParams(jnp.ones((3, 3)), 9 * one, 0.5 * one, one, 0.1 * one)
    quality = selection.merge_quality(pool["scores"], domain, params.alpha)
    rank = selection.domain_rank(quality, domain, tokens=lengths)
    values = selection.sampling_value(rank, domain, params)
    scaled = selection.scale_to_budget(values, 30.0, tokens=lengths, max_copies=2.0)
    shares = selection.expected_mixture(scaled, domain, 3, tokens=lengths)
    return rank, scaled, shares, selection.draw_copies(jax.random.key(4), scaled)


def stages(pool):
    return [f(pool) for f in (diverse, clustered, useful, by_axes, influential, mixed)]


def compiled(**options):
    """All stages as one program, compiled fast."""
    return jax.jit(stages, compiler_options={"xla_backend_optimization_level": 0}, **options)


def checked(pool):
    """Functions that look at numbers before they compute."""
    return [
        selection.select_by_axes(pool["scores"], 40, lengths=pool["lengths"]).chosen,
        selection.expected_mixture(jnp.square(pool["quality"]), pool["labels"], 3),
    ]


def same(found, wanted):
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_allclose(np.asarray(one), other, rtol=1e-3, atol=1e-4)


def test_pruned_and_refined_on_eight_devices(mesh):
    """The two that no other file runs on several devices."""

    @jax.jit
    def run(pool):
        labels, quality = pool["labels"], pool["quality"]
        refined = selection.iterative_refinement(
            jax.random.key(0),
            labels,
            6,
            lambda key, chosen: jnp.mean(jnp.where(chosen, quality, 0)),
            lambda mean, _: quality - mean,
            num_clusters=3,
            rounds=2,
        )
        return refined, selection.prune_sequence(pool, jnp.array([9, 1]), visual=(2, 15))

    pool = arguments()
    split = jax.device_put(pool, NamedSharding(mesh, PartitionSpec("data")))
    same(jax.tree.leaves(run(split)), jax.tree.leaves(run(pool)))


@pytest.mark.slow
def test_two_processes():
    pool = arguments()
    wanted = [*jax.tree.leaves(compiled()(pool)), *jax.tree.leaves(checked(pool))]
    for results in two_processes.results(PROGRAM):
        same(results, wanted)
