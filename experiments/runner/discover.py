"""The experiments: every file ``<subject>/<slug>.py`` that defines presets."""

import ast
import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]
NOT_SUBJECTS = {"runner", "benchmarks", "results"}
REQUIRED = ("PAPERS", "Config", "PRESETS", "load", "run", "plot", "CLAIMS")


class Listed(NamedTuple):
    """What `list` says about an experiment without importing it."""

    name: str
    title: str
    papers: tuple[str, ...]
    data: tuple[str, ...]


def names(root: Path = ROOT) -> list[str]:
    """``<subject>/<slug>`` of every experiment below `root`, sorted."""
    files = [f for f in sorted(root.glob("*/*.py")) if f.parent.name not in NOT_SUBJECTS]
    return [f"{f.parent.name}/{f.stem}" for f in files if "\nPRESETS" in f.read_text()]


def load(name: str, root: Path = ROOT) -> ModuleType:
    """Import the experiment ``<subject>/<slug>``; raise ValueError where there is none."""
    if name not in names(root):
        raise ValueError(f"There is no experiment {name!r}; there are {', '.join(names(root))}.")
    module = import_file(name, root)
    missing = [part for part in REQUIRED if not hasattr(module, part)]
    if missing:
        raise ValueError(f"{name}.py defines no {', '.join(missing)}.")
    return module


def import_file(name: str, root: Path) -> ModuleType:
    """The module; below another root than ours, under a name that nothing else has."""
    if root == ROOT:
        return importlib.import_module("experiments." + name.replace("/", "."))
    path = root / f"{name}.py"
    unique = f"{root.name}_{name.replace('/', '_')}"
    if unique not in sys.modules:
        spec = importlib.util.spec_from_file_location(unique, path)
        if spec is None or spec.loader is None:
            raise ImportError(f"{path} is not a module.")
        sys.modules[unique] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[unique])
    return sys.modules[unique]


def describe(name: str, root: Path = ROOT) -> Listed:
    """Read an experiment's docstring, papers and data sets from its source."""
    tree = ast.parse((root / f"{name}.py").read_text())
    title = (ast.get_docstring(tree) or "").split("\n\n")[0].replace("\n", " ")
    constants: dict[str, Any] = {"PAPERS": (), "DATA": ()}
    for node in tree.body:
        match node:
            case ast.Assign(targets=[ast.Name(id=part)], value=value) if part in constants:
                constants[part] = ast.literal_eval(value)
    return Listed(name, title, tuple(constants["PAPERS"]), tuple(constants["DATA"]))
