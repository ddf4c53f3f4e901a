"""The rules that every public name keeps, and all examples in docstrings and README."""

import ast
import contextlib
import doctest
import importlib
import inspect
import io
import pkgutil
import re
from pathlib import Path

import jax
import pytest

import gradkin

ROOT = Path(__file__).parents[1]
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE

# Positional options, each for a reason: these read like the function they are named after.
POSITIONAL_OPTIONS = {
    "load": {"split"},  # tfds.load(name, split)
    "per_example_grads": {"argnums", "has_aux"},  # jax.grad(fun, argnums, has_aux)
    "value_and_per_example_grads": {"argnums", "has_aux"},
    "hessian": {"argnums", "has_aux"},  # jax.hessian(fun, argnums, has_aux)
    "top_eigenpairs": {"k"},  # as jax.lax.top_k(x, k)
    "kernel_matrix": {"y"},  # one set of points, or two
    "nystrom": {"y"},
    "random_features": {"y"},
}


def modules(*, packages: bool):
    """Names of the library's modules, or only of its packages, in a fixed order."""
    found = pkgutil.walk_packages(gradkin.__path__, "gradkin.")
    return ["gradkin", *sorted(m.name for m in found if m.ispkg or not packages)]


def public(kind):
    """Qualified name -> object for everything that a package's ``__all__`` lists."""
    names = {}
    for package in modules(packages=True):
        module = importlib.import_module(package)
        for name in getattr(module, "__all__", ()):
            value = getattr(module, name)
            if kind(value) and not any(value is other for other in names.values()):
                names[f"{package}.{name}"] = value
    return names


def is_function(value):
    """Whether a value is a function of this library, jitted ones included."""
    value = inspect.unwrap(value) if callable(value) else value
    return inspect.isfunction(value) and value.__module__.startswith("gradkin")


def is_class(value):
    return inspect.isclass(value) and value.__module__.startswith("gradkin")


def source(value):
    return inspect.getsource(inspect.unwrap(value))


def parameters(value):
    named = inspect.signature(inspect.unwrap(value)).parameters.values()
    return [p for p in named if p.name != "self"]


FUNCTIONS = public(is_function)
CLASSES = public(is_class)


@pytest.mark.parametrize("package", modules(packages=True))
def test_a_package_lists_its_public_names(package):
    module = importlib.import_module(package)
    assert inspect.getdoc(module), f"{package} has no docstring"
    if package == "gradkin" and not hasattr(module, "__all__"):
        return
    listed = list(module.__all__)
    assert listed == sorted(set(listed), key=listed.index), "__all__ repeats a name"
    tree = ast.parse(inspect.getsource(module))
    for node in tree.body:
        allowed = isinstance(node, (ast.Import, ast.ImportFrom, ast.Assign)) or (
            isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        )
        assert allowed, f"{package}/__init__.py line {node.lineno}: only re-exports belong here"


@pytest.mark.parametrize("name", FUNCTIONS)
def test_docstring_has_its_sections(name):
    function = FUNCTIONS[name]
    doc = inspect.getdoc(function) or ""
    first = doc.split("\n\n")[0]
    assert first.endswith((".", ":")), f"{name}: the first paragraph ends with a period"
    names = [p.name for p in parameters(function)]
    wanted = {
        "Args:": bool(names),
        "Returns:": "return" in source(function),
        "Raises:": bool(re.search(r"\braise [A-Z]|\bchecks\.", source(function))),
        "Example:": True,
    }
    missing = [title for title, needed in wanted.items() if needed and title not in doc]
    assert not missing, f"{name} lacks {missing}"
    args = doc.partition("Args:")[2]
    silent = [n for n in names if not re.search(rf"\b{re.escape(n)}\b", args)]
    assert not silent, f"{name}: Args does not mention {silent}"


@pytest.mark.parametrize("name", CLASSES)
def test_public_class_has_a_docstring(name):
    value = CLASSES[name]
    doc = value.__doc__ or ""
    assert len(doc) > 20, f"{name} has no docstring"
    assert not doc.startswith(f"{value.__name__}("), f"{name} has only a generated docstring"


@pytest.mark.parametrize("name", FUNCTIONS)
def test_key_first_and_options_by_keyword(name):
    listed = parameters(FUNCTIONS[name])
    names = [p.name for p in listed]
    if "key" in names:
        assert names[0] == "key", f"{name}{tuple(names)}: key comes first"
    positional = {
        p.name
        for p in listed
        if p.default is not p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    }
    excess = positional - POSITIONAL_OPTIONS.get(name.rpartition(".")[2], set())
    assert not excess, f"{name}: make {sorted(excess)} keyword-only"


@pytest.mark.parametrize("name", FUNCTIONS)
def test_public_function_is_used(name):
    short = name.rpartition(".")[2]
    word = re.compile(rf"\b{re.escape(short)}\b")
    own = Path(inspect.getfile(inspect.unwrap(FUNCTIONS[name])))
    users = [
        path
        for folder, pattern in (
            ("lib/gradkin", "**/*.py"),
            ("experiments", "**/*.py"),
            ("colabs", "*.py"),
        )
        for path in (ROOT / folder).glob(pattern)
        if path != own and path.name != "__init__.py"
    ]
    public_peers = own.read_text().count(short) > source(FUNCTIONS[name]).count(short)
    used = any(word.search(path.read_text()) for path in users) or public_peers
    assert used, f"{name} is used by no experiment, notebook or other part of the library"


@pytest.mark.parametrize("module", modules(packages=False))
def test_doctests(module):
    tests = doctest.DocTestFinder(exclude_empty=True).find(importlib.import_module(module))
    run_doctests([test for test in tests if test.examples])


def run_doctests(tests):
    runner = doctest.DocTestRunner(optionflags=FLAGS)
    report = io.StringIO()
    for test in tests:
        runner.run(test, out=report.write)
    assert not runner.failures, report.getvalue()


def test_readme_examples_run():
    text = (ROOT / "README.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```", text, flags=re.M | re.S)
    namespace: dict = {"__name__": "readme"}
    # As the reader has it: default promotion.
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        for number, block in enumerate(blocks):
            if ">>>" in block:
                test = doctest.DocTestParser().get_doctest(
                    block, namespace, f"README block {number}", "README.md", None
                )
                run_doctests([test])
                namespace.update(test.globs)
            else:
                with contextlib.redirect_stdout(io.StringIO()):
                    exec(compile(block, f"README block {number}", "exec"), namespace)
