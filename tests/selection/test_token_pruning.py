"""Pruned sequences and what they cost, against the paper's published sizes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradkin import selection


def test_text_stays_and_order_is_kept(key):
    length, start, stop = 12, 3, 9
    sequence = {
        "embeddings": jax.random.normal(key, (length, 4)),
        "positions": jnp.arange(length),
        "mask": jnp.arange(length) < 11,
    }
    kept = np.array([5, 0, 3])
    prune = lambda s, kept: selection.prune_sequence(s, kept, visual=(start, stop))
    left = [0, 1, 2, 3, 6, 8, 9, 10, 11]
    for found in (prune(sequence, kept), jax.jit(prune)(sequence, kept)):
        assert found["positions"].tolist() == left
        for name, leaf in sequence.items():
            np.testing.assert_array_equal(found[name], leaf[np.array(left)])
    whole = prune(sequence, np.array([2, 4, 0, 1, 5, 3]))
    jax.tree.map(np.testing.assert_array_equal, whole, sequence)
    mapped = jax.vmap(prune, (None, 0))(sequence, np.array([[1, 0], [4, 2]]))
    assert mapped["positions"][:, 3:5].tolist() == [[3, 4], [5, 7]]


@pytest.mark.parametrize(
    ("model", "visual", "kept", "text", "full", "pruned", "ratio"),
    [
        ((32, 4096, 11008), 576, 56, "image", 3.2280, 0.5122, 0.15630),
        ((40, 5120, 13824), 576, 56, "image", 6.2813, 1.0020, 0.15713),
        ((32, 4096, 11008), 1152, 115, "video", 6.5386, 0.9371, 0.14104),
    ],
)
def test_cost_of_published_prompts(model, visual, kept, text, full, pruned, ratio):
    lengths = {
        "image": (15, 15, 23, 83, 25, 113, 15, 39, 21, 91, 57),
        "video": (28, 63, 21, 38, 196),
    }[text]
    sizes = dict(zip(("layers", "width", "hidden"), model))
    cost = lambda tokens: np.array([selection.prefill_flops(t + tokens, **sizes) for t in lengths])
    assert np.mean(cost(visual)) / 1e12 == pytest.approx(full, rel=1e-3)
    assert np.mean(cost(kept)) / 1e12 == pytest.approx(pruned, rel=1e-3)
    assert np.mean(cost(kept) / cost(visual)) == pytest.approx(ratio, rel=1e-3)


def test_bad_input():
    x = jnp.zeros((6, 2))
    prune = selection.prune_sequence
    with pytest.raises(ValueError, match="leaves of one length"):
        prune((x, jnp.zeros(5)), np.array([0]), visual=(0, 3))
    for visual in ((2, 2), (-1, 3), (2, 7)):
        with pytest.raises(ValueError, match="span of 6 tokens"):
            prune(x, np.array([0]), visual=visual)
    with pytest.raises(ValueError, match="1 to 3 tokens, got 4"):
        prune(x, np.arange(4), visual=(1, 4))
    with pytest.raises(ValueError, match="got 1 to 3"):
        prune(x, np.array([1, 3]), visual=(1, 4))
    with pytest.raises(ValueError, match="no token twice"):
        prune(x, np.array([1, 1]), visual=(1, 4))
    with pytest.raises(ValueError, match="kept"):
        prune(x, np.array([[1]]), visual=(1, 4))
    with pytest.raises(ValueError, match="layers"):
        selection.prefill_flops(3, layers=-1, width=2, hidden=2)
