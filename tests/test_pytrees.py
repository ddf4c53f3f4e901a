"""Dataclasses as pytrees: JAX must never take one class for another."""

import dataclasses
import functools
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import pytest

import gradkin
from gradkin import gradients, kernels
from gradkin.pytrees import check_told_apart, register_dataclass

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


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["weight", "inner"], meta_fields=["power"]
)
@dataclasses.dataclass(frozen=True)
class Confused:
    weight: Any
    inner: object
    power: int

    def __call__(self, x, y):
        return self.weight * jnp.sum(x * y) ** self.power


class Pair(NamedTuple):
    first: object
    second: object


@jax.tree_util.register_pytree_node_class
@dataclasses.dataclass(frozen=True)
class Own:
    x: object
    name: str

    def tree_flatten(self):
        return (self.x,), {"name": self.name}

    @classmethod
    def tree_unflatten(cls, aux, children):
        return cls(*children, **aux)


def test_classes_that_jax_confuses_are_refused():
    confused = Confused(jnp.ones(()), None, 2)
    words = "Expected Confused to be registered by gradkin.pytrees.register_dataclass"
    for tree in (confused, [1.0, Pair(confused, 2.0)], Point(1.0, confused)):
        with pytest.raises(TypeError, match=words):
            check_told_apart(tree)
    with pytest.raises(TypeError, match=words):
        gradkin.kernel_matrix(confused, jnp.ones((2, 3)))
    good = register_dataclass(type("Good", (Confused,), {}), ["weight", "inner"], ["power"])
    found = gradkin.kernel_matrix(good(jnp.ones(()), None, 2), jnp.ones((2, 3))).sum()
    assert found == 36


@pytest.mark.parametrize("fields", [{}, {"power": 2}])
def test_classes_without_children_are_refused_too(fields):
    fixed = {"frozen": True, "namespace": {"__call__": lambda self, x, y: jnp.sum(x * y)}}
    confused, good = (dataclasses.make_dataclass(n, fields, **fixed) for n in ("Bare", "Good"))
    jax.tree_util.register_dataclass(confused, [], list(fields))
    register_dataclass(good, [], list(fields))
    words = "Expected Bare to be registered by gradkin.pytrees.register_dataclass"
    with pytest.raises(TypeError, match=words):
        check_told_apart([1.0, confused(**fields)])
    with pytest.raises(TypeError, match=words):
        gradkin.kernel_matrix(confused(**fields), jnp.ones((2, 3)))
    check_told_apart([1.0, good(**fields), kernels.Euclidean()])
    assert jax.tree.structure(good(**fields)) != jax.tree.structure(confused(**fields))


def test_what_jax_tells_apart_passes():
    for tree in (
        Point(None, [2.0]),
        Pair(1.0, None),
        Own(1.0, "a"),
        {"a": Marked(1, "b")},
        None,
        (),
    ):
        check_told_apart(tree)
    jax.jit(check_told_apart)(Point(1.0, Own(2.0, "c")))
