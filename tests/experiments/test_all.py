"""Every experiment: says what it is, runs at smoke, and can be compiled at its paper's setting."""

import contextlib
import dataclasses
import functools
import inspect
import math
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.runner import Claim, bibliography, discover, pure_loop
from experiments.runner.compiled import shared_programs
from experiments.runner.run import execute, finish, prepare

NAMES = discover.names()
PAPERS = bibliography.read()


load = discover.load


@contextlib.contextmanager
def skipped_without_extra():
    """Skip where an experiment says which extra its data need."""
    try:
        yield
    except ImportError as error:
        if "gradkin[" in str(error):
            pytest.skip(str(error))
        raise


@pytest.mark.parametrize("name", NAMES)
def test_says_what_it_is(name):
    module = load(name)
    text = inspect.getdoc(module) or ""
    assert re.search(r"arXiv:\s?\d{4}\.\d{4,5}|doi", text), "the docstring has no arXiv id"
    assert f"python -m experiments run {name}" in text, "the docstring has no command"
    assert re.search(r"\b(s|seconds?|min|minutes?)\b", text), "the docstring has no expected time"
    assert list(module.PRESETS) == ["smoke", "quick", "paper"]
    fields = dataclasses.fields(module.Config)
    assert len(fields) <= 16, "a config of more than 16 fields"
    for config in module.PRESETS.values():
        assert type(config) is module.Config
        with pytest.raises(dataclasses.FrozenInstanceError):
            config.anything = None
    if hasattr(module, "DATA"):
        assert module.PRESETS["quick"].data in module.DATA
    lines = Path(inspect.getfile(module)).read_text().count("\n")
    assert lines <= 400, f"{lines} lines; an experiment has 80 to 250"


@pytest.mark.parametrize("name", NAMES)
def test_claims_are_of_its_papers(name):
    module = load(name)
    assert module.PAPERS
    assert set(module.PAPERS) <= PAPERS.keys(), "not in references.bib"
    assert module.CLAIMS
    assert all(type(claim) is Claim for claim in module.CLAIMS)
    assert {claim.paper for claim in module.CLAIMS} <= set(module.PAPERS)
    texts = [claim.text for claim in module.CLAIMS]
    assert len(set(texts)) == len(texts)


@pytest.mark.parametrize("name", NAMES)
def test_smoke(name, tmp_path):
    run = prepare(name, preset="smoke", seeds=2, out=tmp_path)
    with shared_programs(), skipped_without_extra():
        found = execute(run, run.module.load(run.config))
    assert found is not None
    assert found["metrics"]
    assert finish(run, found) == 0
    assert list(tmp_path.glob("*.png"))


@pytest.mark.parametrize("name", NAMES)
def test_paper_preset_lowers(name):
    module = load(name)
    config = module.PRESETS["paper"]
    with skipped_without_extra():
        spec = getattr(module, "data_spec", module.load)(config)
    spec = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(np.shape(x), jax.dtypes.canonicalize_dtype(x.dtype)), spec
    )
    vmap_seeds = getattr(module, "VMAP_SEEDS", False)
    key = jax.eval_shape(lambda: jax.random.key(0))
    if vmap_seeds:
        key = jax.eval_shape(lambda: jnp.stack([jax.random.key(0), jax.random.key(1)]))
    loop = functools.partial(pure_loop, vmap_seeds=vmap_seeds)
    lowered = jax.jit(lambda key, data: module.run(config, key, data, loop)).lower(key, spec)
    numbers = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(lowered.out_info))
    assert numbers * 10 < 1_000_000, f"{numbers} numbers are too many for a file of evidence"
