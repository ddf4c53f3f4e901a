"""Dataclasses as pytrees: JAX must never take one class for another."""

import dataclasses
import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from gradkin import gradients, kernels
from gradkin.pytrees import register_dataclass

LIBRARY = Path(__file__).parents[1] / "lib"


@functools.partial(register_dataclass, data_fields=["x", "y"], meta_fields=["name"])
@dataclasses.dataclass(frozen=True)
class Point:
    x: object
    y: object
    name: str = "p"


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Marked:
    x: object
    name: str = dataclasses.field(metadata={"static": True})


def test_structures_of_different_classes_differ():
    several = [
        *(kind(1.0) for kind in (kernels.Gaussian, kernels.Exponential, kernels.Laplacian)),
        kernels.Cauchy(1.0),
        kernels.Cosine(),
        kernels.Euclidean(),
        kernels.SquaredEuclidean(),
        kernels.Linear(),
        gradients.RademacherSketch(jax.random.key(0), 4),
        gradients.GaussianSketch(jax.random.key(0), 4),
        gradients.HadamardSketch(jax.random.key(0), 4),
        gradients.TensorSketch(jax.random.key(0), 4),
    ]
    structures = [jax.tree.structure(one) for one in several]
    for i, left in enumerate(structures):
        for j, right in enumerate(structures):
            assert (left == right) == (i == j), (several[i], several[j])


def test_the_library_registers_no_class_otherwise():
    found = [
        path.name
        for path in LIBRARY.rglob("*.py")
        if "jax.tree_util.register_dataclass" in path.read_text() and path.name != "pytrees.py"
    ]
    assert not found


def test_children_static_fields_and_paths():
    point = Point(1.0, {"z": 2.0}, name="q")
    assert jax.tree.map(lambda x: 2 * x, point) == Point(2.0, {"z": 4.0}, name="q")
    paths = [jax.tree_util.keystr(p) for p, _ in jax.tree_util.tree_leaves_with_path(point)]
    assert paths == [".x", ".y['z']"]
    assert jax.tree.structure(point) != jax.tree.structure(Point(1.0, {"z": 2.0}, name="r"))
    marked = jax.jit(jax.vmap(lambda m: dataclasses.replace(m, x=m.x + 1)))(
        Marked(jnp.zeros(2), "a")
    )
    assert marked.name == "a"
    assert marked.x.tolist() == [1.0, 1.0]


def test_fields_must_be_those_of_the_class():
    @dataclasses.dataclass
    class Lacking:
        x: object
        y: object

    with pytest.raises(ValueError, match="to be the fields of Lacking"):
        register_dataclass(Lacking, data_fields=["x"], meta_fields=[])
