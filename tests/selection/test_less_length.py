"""The examples that language models are trained on in the experiments with LESS."""

import numpy as np

from experiments.selection import language, less_length


def test_pack_keeps_the_answer():
    packed = language.pack([[1, 2], [1, 2, 3, 4], [1]], [[5], [6, 7], [2, 3, 4, 5, 6, 7]], 5)
    expected = [[1, 2, 5, 0, 0], [2, 3, 4, 6, 7], [1, 2, 3, 4, 5]]
    np.testing.assert_array_equal(packed.tokens, expected)
    where = [[0, 0, 1, 0, 0], [0, 0, 0, 1, 1], [0, 1, 1, 1, 1]]
    np.testing.assert_array_equal(packed.answer, np.array(where, bool))


def test_instructions_say_their_source_and_copies_copy():
    rng = np.random.default_rng(0)
    source = np.arange(40_000) % less_length.SOURCES
    letters = rng.dirichlet(np.ones(less_length.LETTERS), less_length.SOURCES)
    tokens, answer = less_length.instructions(rng, source, letters)
    np.testing.assert_array_equal(tokens[:, 0] - less_length.SOURCE, source)
    assert (tokens[:, less_length.CONTENT + 1] == less_length.SAY).all()
    assert (answer[:, less_length.CONTENT + 2 :].argmin(1)[answer.sum(1) < 40] >= 2).all()
    lengths = answer.sum(1)
    assert (lengths.min(), lengths.max()) == (less_length.SHORTEST, less_length.LONGEST)
    assert (tokens[:, less_length.CONTENT + 2 :][~answer[:, less_length.CONTENT + 2 :]] == 0).all()
    for s in range(less_length.SOURCES):  # as often as they should be, at any place
        drawn = tokens[source == s][answer[source == s]] - less_length.LETTER
        found = np.bincount(drawn, minlength=less_length.LETTERS) / len(drawn)
        np.testing.assert_allclose(found, letters[s], atol=0.006)

    tokens, answer = less_length.copies(rng, 60)
    assert {*answer.sum(1).tolist()} == set(range(less_length.COPIED[0], less_length.COPIED[1] + 1))
    for row, where in zip(tokens, answer):
        length = where.sum()
        assert row[0] == less_length.COPY
        assert row[length + 1] == less_length.SAY
        np.testing.assert_array_equal(row[1 : length + 1], row[where])
        assert (row[2 * length + 2 :] == less_length.PAD).all()
