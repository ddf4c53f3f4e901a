"""The pools of instructions, and what LESS is compared with on them."""

import functools
import gzip
import json
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from experiments.runner import pure_loop
from experiments.selection import language, less_text, text_choices, text_pools, text_tuning
from gradkin import models


@pytest.fixture(scope="module")
def strings():
    return text_pools.synthetic(pool=90, corpus=40, validation=2, test=12)


def said(examples):
    """``(question, answer)`` of each row, without what is padded."""
    rows = zip(examples.tokens.reshape(-1, 15).tolist(), examples.answer.reshape(-1, 15).tolist())
    texts = []
    for tokens, answer in rows:
        first = answer.index(True)
        texts.append((tokens[: first - 1], [t for t, a in zip(tokens, answer) if a]))
        assert tokens[first - 1] == text_pools.ANSWER
        assert texts[-1][1][-1] == text_pools.END
    return texts


def test_strings(strings):
    pools, target = strings["pools"], said(strings["test"]) + said(strings["validation"])
    assert pools.tokens.shape == (2, 90, 15)
    assert strings["validation"].tokens.shape == (3, 2, 15)
    np.testing.assert_array_equal(np.bincount(strings["sources"][0]), np.full(9, 10))
    for question, answer in target:
        assert question[3:] == answer[:-1][::-1]
        assert question[2] == text_pools.UNSAID
    for question, answer in said(language.Examples(*(x[1, :10] for x in pools))):
        assert answer[:-1] == question[3:][::-1]
        assert question[0] in (text_pools.WORD + 2, text_pools.WORD + 3)
    # The eight other sources are the same in both; nothing of the target is in a pool.
    np.testing.assert_array_equal(pools.tokens[0, 10:], pools.tokens[1, 10:])
    own = {
        tuple(question[3:]) for question, _ in said(language.Examples(*(x[0, :10] for x in pools)))
    }
    held = [tuple(question[3:]) for question, _ in target]
    assert len(set(held)) == len(held) == 18
    assert not own & set(held)
    lengths = [len(answer) for _, answer in said(strings["validation"])]
    assert lengths == [4, 4, 5, 5, 6, 6]  # subtask after subtask


def test_every_operation():
    answers = [operation([5, 1, 3]) for operation in text_pools.OPERATIONS.values()]
    assert answers == [
        [3, 1, 5],
        [3, 1, 5],
        [5, 1, 3],
        [1, 3, 5],
        [6, 2, 4],
        [15, 11, 13],
        [5],
        [3],
        [1, 3, 5],
        [22],
    ]


@pytest.fixture
def folder(tmp_path):
    """Sets in the formats of their authors, a few lines each."""
    files = {
        "gsm8k/train.jsonl": [
            json.dumps(
                {
                    "question": f"jump left I_JUMP run I_RUN {i} 2?",
                    "answer": f"<<{i}+2={i + 2}>> {i + 2}",
                }
            )
            for i in range(40)
        ],
        "sst2/train.tsv": [f"film number {i}\t{i % 2}" for i in range(20)],
        "self_instruct/seed_tasks.jsonl": [
            json.dumps({"instruction": "Say it.", "instances": [{"input": "it", "output": "It."}]})
        ],
        "tiny_shakespeare/input.txt": ["First Citizen:", "Speak, speak.", "", "All:", "Speak."],
    }
    files["self_instruct/user_oriented_instructions.jsonl"] = files[
        "self_instruct/seed_tasks.jsonl"
    ]
    for name in ("boolean_expressions", "navigate", "word_sorting", "date_understanding"):
        task = {"examples": [{"input": f"{name} {i} ?", "target": "(A)"} for i in range(9)]}
        files[f"bbh/{name}.json"] = [json.dumps(task)]
    for name, lines in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("\n".join(lines) + "\n")
    (tmp_path / "scan").mkdir()
    moves = [("walk", "I_WALK"), ("walk twice", "I_WALK I_WALK"), ("jump", "I_JUMP")]
    jumps = [(f"jump {'run ' * i}left", "I_JUMP" + " I_RUN" * i) for i in range(1, 13)]
    for name, pairs in {
        "train_simple": moves + jumps[:1],
        "test_simple": moves[:1] + jumps[1:],
        "train_addprim_jump": moves,
    }.items():
        text = "".join(f"IN: {question} OUT: {answer}\n" for question, answer in pairs)
        (tmp_path / f"scan/tasks_{name}.txt.gz").write_bytes(gzip.compress(text.encode()))
    return tmp_path


def test_folder(folder):
    data = text_pools.read(folder, pool=27, vocabulary=160, validation=1, test=6)
    pools = data["pools"]
    assert pools.tokens.shape == (2, 27, text_pools.LENGTH)
    assert pools.tokens.max() < 160
    # One line each of self-instruct; GSM8K fills up.
    np.testing.assert_array_equal(np.bincount(data["sources"][0]), [3, 7, 3, 1, 1, 3, 3, 3, 3])
    assert data["validation"].tokens.shape == (3, 1, text_pools.LENGTH)
    assert data["test"].tokens.shape == (6, text_pools.LENGTH)
    assert data["corpus"].tokens.shape[1] == text_pools.LENGTH
    short, middle, long = np.sum(data["test"].answer, axis=1).reshape(3, 2)
    assert short.max() < middle.min() <= middle.max() < long.min()
    in_pool = {row.tobytes() for row in pools.tokens.reshape(-1, text_pools.LENGTH)}
    assert not in_pool & {row.tobytes() for row in data["test"].tokens}
    (folder / "sst2/train.tsv").unlink()
    with pytest.raises(FileNotFoundError, match="sst2/train.tsv"):
        text_pools.read(folder, pool=27, vocabulary=160, validation=1, test=6)


def test_tokenizer_spells_what_it_does_not_know():
    tokens = text_pools.tokenizer(["the cat, the dog", "the CAT"], 74)
    assert len(tokens("the")) == 1
    assert tokens("The, cat") == [*tokens("the"), *tokens(","), *tokens("cat")]
    assert tokens("dog") == [*tokens("d"), *tokens("o"), *tokens("g")]
    assert tokens("—") == [text_pools.UNSAID]


def test_long_texts_are_cut():
    examples = text_pools.rows([(list(range(10, 30)), list(range(30, 50)))], length=12)
    tokens = [25, 26, 27, 28, 29, text_pools.ANSWER, 30, 31, 32, 33, 34, 35]
    np.testing.assert_array_equal(examples.tokens[0], tokens)
    np.testing.assert_array_equal(examples.answer[0], [False] * 6 + [True] * 6)


def test_nearest_words():
    """BM25 of Robertson and Zaragoza, term by term."""
    rng = np.random.default_rng(0)
    make = lambda n: rng.integers(0, 12, (n, 6)).astype(np.int32)
    pool, few = make(20), make(6)
    found = jax.jit(
        lambda p, f: text_choices.nearest_words(
            language.Examples(p, p > 0), language.Examples(f, f > 0), 12
        )
    )(pool, few)
    texts = [Counter(t for t in row if t >= text_pools.LETTER) for row in pool.tolist()]
    mean = np.mean([sum(text.values()) for text in texts])
    scores = np.zeros((20, 6))
    for i, text in enumerate(texts):
        for j, query in enumerate(few.tolist()):
            for t in {t for t in query if t >= text_pools.LETTER}:
                df = sum(t in other for other in texts)
                idf = np.log((20 - df + 0.5) / (df + 0.5) + 1)
                long = 1 - 0.75 + 0.75 * sum(text.values()) / mean
                scores[i, j] += idf * text[t] * 2.5 / (text[t] + 1.5 * long)
    np.testing.assert_allclose(found, scores.reshape(20, 3, 2).mean(2).max(1), rtol=1e-5)


def test_as_long():
    lengths = jnp.array([1, 2, 2, 2, 3, 3, 4, 4, 4, 4])
    index = jnp.array([0, 2, 5, 6, 9])
    draw = jax.jit(jax.vmap(text_choices.as_long, (0, None, None)))
    found = np.asarray(draw(jax.random.split(jax.random.key(0), 50), lengths, index))
    for row in found:
        assert len(set(row.tolist())) == 5
        assert sorted(np.asarray(lengths)[row]) == [1, 2, 3, 4, 4]
    assert set(found.ravel().tolist()) == set(range(10))


def test_tune(strings):
    config = less_text.Config(width=8, depth=1, rank=1, epochs=2, batch_size=4, learning_rate=0.05)
    sizes = {"width": 8, "depth": 1, "max_length": 15}
    model = language.init(jax.random.key(0), 64, tuple(sizes.items()))
    texts = jax.tree.map(lambda x: jnp.asarray(x[0]), strings["pools"])
    test = jax.tree.map(jnp.asarray, strings["test"])
    loop = functools.partial(pure_loop, vmap_seeds=True)
    keys = jax.random.split(jax.random.key(1), 2)
    own, other = jnp.arange(8), jnp.arange(82, 90)
    chosen = jnp.broadcast_to(jnp.stack([own, own, other])[None], (2, 3, 8))

    @jax.jit
    def tuned(keys, model, texts, test):
        start = text_tuning.first_adapters(config, keys, model)
        adapters = text_tuning.tune(config, model, keys, start, chosen, texts, loop, name="few")
        return adapters, text_tuning.answers(config, model, adapters, test)

    adapters, found = tuned(keys, model, texts, test)
    assert found.shape == (2, 3, 3, 3)  # seeds, epochs and the start, choices, measures
    np.testing.assert_array_equal(found[:, :, 0], found[:, :, 1])
    logits = nnx.merge(*model)(test.tokens)
    loss = jnp.mean(models.token_loss(logits, test.tokens, test.answer))
    np.testing.assert_allclose(found[:, 0, :, 0], loss, rtol=1e-5)
    assert (found[:, -1, 0, 0] < found[:, 0, 0, 0]).all()
    assert (abs(found[:, -1, 0, 0] - found[:, -1, 2, 0]) > 1e-4).all()
    # The first steps of Adam are as long as the rate.
    moved = abs(adapters[:, 1] - adapters[:, 0]).max()
    assert 0.05 < moved < 2 * 0.05 + 1e-6
    with pytest.raises(ValueError, match="batch_size=4 and 7 texts"):
        text_tuning.tune(config, model, keys, None, chosen[..., :7], texts, loop, name="few")
