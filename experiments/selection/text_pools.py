"""Pools of instructions from several sources, and a target task of which few examples are known.

A pool has nine sources. In the pool "own" source 0 is the target task itself; in the pool "related"
it is another task that shares something with the target, and the target is nowhere in the pool.
Examples of the target have one of three subtasks: by the length of the string or of the answer.

`synthetic` makes strings of letters and what is to be done with them. `read` takes a folder with
public sets of instructions; the target there is SCAN: commands that use "jump" together with other
words. The pool "related" has SCAN's split of which the training half never does.
"""

import collections
import gzip
import json
import re
import string
from pathlib import Path

import numpy as np

from experiments.selection import language

PAD, END, ANSWER, UNSAID = range(4)  # tokens of both kinds of data
SUBTASKS = 3
SOURCES = 9

# ---- strings of letters ----------------------------------------------------------------------

# Letters are 0 to 9, their capitals 10 to 19, the numbers one to five 20 to 24.
OPERATIONS = {
    "reverse": lambda s: s[::-1],
    "mirror": lambda s: s[::-1],  # the same in other words
    "copy": lambda s: s,
    "sort": sorted,
    "next letters": lambda s: [(c + 1) % 10 for c in s],
    "capitals": lambda s: [c + 10 for c in s],
    "first": lambda s: s[:1],
    "last": lambda s: s[-1:],
    "rotate": lambda s: s[1:] + s[:1],
    "count distinct": lambda s: [19 + len(set(s))],
}
LENGTHS = (3, 4, 5)
STRINGS = 15  # tokens of an example
LETTER = 4
SYMBOL = LETTER + 25  # one for each operation
WORD = SYMBOL + len(OPERATIONS)  # two for each operation
FILLER = WORD + 2 * len(OPERATIONS)
FILLERS = 4


def synthetic(pool, corpus, validation, test, *, seed=0):
    """Two pools, a corpus to pre-train on and the target's examples, as arrays of tokens.

    An example is a word for the operation, a filler, a sign that nothing more is said, the string
    and the answer. In the corpus the words are those of any operation: a symbol that no example of
    a pool has tells which one is meant, or one in four times nothing does. A model of the corpus
    can do everything and does not know what the words ask for.

    The strings of a source differ from one another, and those of the target's own source from its
    validation and test strings. Those of other sources are drawn apart, so some are also strings of
    the target; in "mirror", source 0 of the pool "related", they have the target's answer too, in
    other words. At `quick`, of 120 test strings 2.9 are expected among those of "mirror", nearly
    all of length 3, where 40 of 1000 strings are tested and 66 are in the pool; with seed 0 it is
    2. In the eight sources that both pools share, something else is asked of 15 of the 120.

    Args:
      pool: examples of a pool, a multiple of nine.
      corpus: documents to pre-train on.
      validation: examples of the target for each subtask.
      test: other examples of the target, a multiple of three.
      seed: of the generator.

    Returns:
      The data of `selection/less_text`; see `gathered`.
    """
    rng = np.random.default_rng(seed)
    target, related, *others = range(len(OPERATIONS))

    def strings(count, length):
        chosen = rng.choice(10**length, count, replace=False)
        return [[int(c) for c in f"{number:0{length}d}"] for number in chosen]

    def document(operation, text, *, named=None, symbol=UNSAID):
        named = operation if named is None else named
        words = [WORD + 2 * named + rng.integers(2), FILLER + rng.integers(FILLERS)]
        answer = list(OPERATIONS.values())[operation](text)
        return [*words, symbol, *(LETTER + c for c in text)], [LETTER + c for c in answer]

    each = pool // SOURCES
    sources: dict[int, list] = {number: [] for number in range(len(OPERATIONS))}
    few, held_out = [], []
    for place, length in enumerate(LENGTHS):
        count = (each + place) // SUBTASKS
        for operation in (related, *others):
            sources[operation] += [document(operation, s) for s in strings(count, length)]
        known = strings(count + validation + test // SUBTASKS, length)
        made = [document(target, s) for s in known]
        sources[target] += made[:count]
        few.append(made[count : count + validation])
        held_out += made[count + validation :]

    def of_corpus():
        operation, named = rng.integers(len(OPERATIONS), size=2)
        text = [int(c) for c in rng.integers(10, size=rng.choice(LENGTHS))]
        symbol = UNSAID if rng.random() < 0.25 else SYMBOL + operation
        return document(int(operation), text, named=int(named), symbol=symbol)

    return gathered(
        [[sources[first], *(sources[i] for i in others)] for first in (target, related)],
        few,
        held_out,
        rows([of_corpus() for _ in range(corpus)], length=STRINGS),
        length=STRINGS,
    )


# ---- public sets -----------------------------------------------------------------------------

LENGTH = 32  # tokens of an example
PIECE = re.compile(r"[a-z_]+|\d|[^\w\s]")
FILES = (
    "scan/tasks_train_simple.txt.gz",
    "scan/tasks_test_simple.txt.gz",
    "scan/tasks_train_addprim_jump.txt.gz",
    "gsm8k/train.jsonl",
    "sst2/train.tsv",
    "self_instruct/seed_tasks.jsonl",
    "self_instruct/user_oriented_instructions.jsonl",
    "tiny_shakespeare/input.txt",
)
# The tasks of BIG-Bench Hard in groups: with SCAN and the four other sets, nine sources.
REASONING = {
    "logic": ("boolean", "formal", "logical", "web_of", "causal"),
    "objects": ("object_counting", "penguins", "reasoning_about", "tracking", "navigate"),
    "words": (
        "word_sorting",
        "dyck",
        "hyperbaton",
        "ruin_names",
        "salient",
        "snarks",
        "disambiguation",
    ),
    "times and places": ("date", "temporal", "geometric", "movie", "sports", "multistep"),
}


def read(folder, pool, vocabulary, validation, test, *, seed=0):
    """As `synthetic`, from a folder of public sets; the corpus is their texts, never in pairs.

    Args:
      folder: holds ``scan``, ``gsm8k``, ``sst2``, ``self_instruct``, ``bbh`` and
        ``tiny_shakespeare`` with the files their authors publish.
      pool: examples of a pool, a multiple of nine.
      vocabulary: how many tokens there are; the most frequent words are tokens, others are spelled.
      validation: examples of the target for each subtask.
      test: other examples of the target.
      seed: of the generator.

    Returns:
      The data of `selection/less_text`; see `gathered`.

    Raises:
      FileNotFoundError: a file is missing; the message says which.
    """
    folder = Path(folder)
    missing = [name for name in FILES if not (folder / name).exists()]
    if missing or not list(folder.glob("bbh/*.json")):
        raise FileNotFoundError(
            f"Expected {folder} to hold bbh/*.json and {', '.join(FILES)}; "
            f"missing: {', '.join(missing) or 'bbh/*.json'}."
        )
    rng = np.random.default_rng(seed)
    text = lambda name: (folder / name).read_text(encoding="utf-8")
    objects = lambda name: [json.loads(line) for line in text(name).splitlines()]

    own, held, related = (commands(folder / name) for name in FILES[:3])
    others = [
        [(o["question"], re.sub("<<.*?>>", "", o["answer"])) for o in objects("gsm8k/train.jsonl")],
        [
            (f"is this positive or negative ? {sentence}", ("negative", "positive")[int(label)])
            for sentence, label in (r.split("\t") for r in text("sst2/train.tsv").splitlines())
        ],
    ]
    for name in ("seed_tasks", "user_oriented_instructions"):
        tasks = [(o["instruction"], o["instances"]) for o in objects(f"self_instruct/{name}.jsonl")]
        others.append([(f"{said} {i['input']}", i["output"]) for said, made in tasks for i in made])
    for starts in REASONING.values():
        files = [f for f in sorted(folder.glob("bbh/*.json")) if f.name.startswith(starts)]
        tasks = [json.loads(file.read_text(encoding="utf-8"))["examples"] for file in files]
        others.append([(o["input"], o["target"]) for task in tasks for o in task])

    def some(pairs, count):
        return [pairs[i] for i in rng.permutation(len(pairs))[:count]]

    # A set that is too small gives all it has; the first one fills up.
    each = pool // SOURCES
    firsts = [some(own, each), some(related, each)]
    later = [some(pairs, each) for pairs in others[1:]]
    taken = [some(others[0], pool - each - sum(map(len, later))), *later]

    jumps = [pair for pair in held if "jump" in pair[0] and pair[0] != "jump"]
    jumps.sort(key=lambda pair: len(pair[1].split()))
    third = len(jumps) // SUBTASKS
    count = validation + test // SUBTASKS
    by_length = [some(jumps[i * third : (i + 1) * third], count) for i in range(SUBTASKS)]
    few = [part[:validation] for part in by_length]
    held_out = [pair for part in by_length for pair in part[validation:]]

    play = text("tiny_shakespeare/input.txt")[:150_000].split("\n\n")
    texts = [text for source in [*firsts, *taken] for pair in source for text in pair] + play
    tokens = tokenizer(texts, vocabulary)
    stream = [t for i in rng.permutation(len(texts)) for t in [*tokens(texts[i]), END]]
    corpus = np.array(stream[: len(stream) // LENGTH * LENGTH], np.int32).reshape(-1, LENGTH)

    pair = lambda texts: [(tokens(question), tokens(answer)) for question, answer in texts]
    return gathered(
        [[pair(first), *map(pair, taken)] for first in firsts],
        [pair(part) for part in few],
        pair(held_out),
        language.Examples(corpus, np.ones(corpus.shape, bool)),
        length=LENGTH,
    )


def commands(path):
    """SCAN's commands and actions, those that fit into `LENGTH` tokens."""
    text = gzip.decompress(path.read_bytes()).decode()
    pairs = re.findall(r"^IN: (.*) OUT: (.*)$", text, flags=re.M)
    return [(q, a) for q, a in pairs if len(q.split()) + len(a.split()) + 2 <= LENGTH]


def tokenizer(texts, vocabulary):
    """Text -> tokens: the most frequent words of `texts`, and characters to spell the others."""
    counts = collections.Counter(piece for text in texts for piece in PIECE.findall(text.lower()))
    known = sorted(set(string.printable.lower()) - set(string.whitespace))
    words = [w for w, _ in counts.most_common() if len(w) > 1]
    names = [*known, *words][: vocabulary - UNSAID - 1]
    numbers = {name: UNSAID + 1 + i for i, name in enumerate(names)}

    def tokens(text):
        spelled = (
            (piece,) if piece in numbers else tuple(piece) for piece in PIECE.findall(text.lower())
        )
        return [numbers.get(name, UNSAID) for names in spelled for name in names]

    return tokens


# ---- arrays ----------------------------------------------------------------------------------


def rows(pairs, *, length):
    """Questions and answers as examples; an answer gets half of the length, or what is left."""
    prompts = [[*question, ANSWER] for question, _ in pairs]
    answers = [
        [*answer, END][: max(length // 2, length - len(prompt))]
        for prompt, (_, answer) in zip(prompts, pairs)
    ]
    return language.pack(prompts, answers, length, pad=PAD)


def gathered(pools, few, held_out, corpus, *, length):
    """The data of an experiment.

    Returns:
      Examples: ``pools`` ``[2, n, T]`` and ``sources`` of them ``[2, n]``; ``validation``
      ``[3, m, T]``, a row for each subtask; ``test`` ``[N, T]``; ``corpus`` ``[C, T]``.
    """
    texts = [rows([pair for source in pool for pair in source], length=length) for pool in pools]
    sources = [np.repeat(np.arange(SOURCES, dtype=np.int32), [*map(len, pool)]) for pool in pools]
    stack = lambda parts: language.Examples(*map(np.stack, zip(*parts)))
    return {
        "pools": stack(texts),
        "sources": np.stack(sources),
        "validation": stack([rows(part, length=length) for part in few]),
        "test": rows(held_out, length=length),
        "corpus": corpus,
    }
