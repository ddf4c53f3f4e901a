"""The examples that language models are trained on in the experiments with LESS."""

import jax
import numpy as np

from experiments.selection import language, less_length


def test_pack_keeps_the_answer():
    packed = language.pack([[1, 2], [1, 2, 3, 4], [1]], [[5], [6, 7], [2, 3, 4, 5, 6, 7]], 5)
    expected = [[1, 2, 5, 0, 0], [2, 3, 4, 6, 7], [1, 2, 3, 4, 5]]
    np.testing.assert_array_equal(packed.tokens, expected)
    where = [[0, 0, 1, 0, 0], [0, 0, 0, 1, 1], [0, 1, 1, 1, 1]]
    np.testing.assert_array_equal(packed.answer, np.array(where, bool))


def test_instructions_say_their_source_and_copies_copy(key):
    logits = less_length.sources(key)
    np.testing.assert_allclose(np.exp(logits).sum(1), 1, rtol=1e-5)
    np.testing.assert_allclose(np.sort(logits)[1:], np.sort(logits)[:1].repeat(7, 0), rtol=1e-5)
    examples, source, lengths = jax.jit(less_length.instructions, static_argnums=1)(key, 60, logits)
    tokens, answer = (np.asarray(x) for x in examples)
    np.testing.assert_array_equal(answer.sum(1), lengths)
    np.testing.assert_array_equal(tokens[:, 0] - less_length.SOURCE, source)
    assert (tokens[:, less_length.CONTENT + 1] == less_length.SAY).all()
    assert (tokens[answer] >= less_length.LETTER).all()
    assert (tokens[answer] < less_length.VOCABULARY).all()
    assert set(source.tolist()) == set(range(less_length.SOURCES))
    last = less_length.CONTENT + 1 + np.asarray(lengths)
    assert all((row[end + 1 :] == less_length.PAD).all() for row, end in zip(tokens, last))

    examples, lengths = jax.jit(less_length.copies, static_argnums=1)(key, 60)
    for row, answer, length in zip(*(np.asarray(x) for x in examples), np.asarray(lengths)):
        assert row[0] == less_length.COPY
        assert row[length + 1] == less_length.SAY
        np.testing.assert_array_equal(row[1 : length + 1], row[answer])
        assert answer.sum() == length
        assert (row[2 * length + 2 :] == less_length.PAD).all()
    assert (lengths.min(), lengths.max()) == less_length.COPIED
