"""Compile a function of a loop once for all seeds."""

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
from jax.experimental.compilation_cache import compilation_cache
from jax.extend import core


def lifted(function: Callable, *arguments: Any) -> tuple[Callable, list, Any]:
    """Return the function with what it closes over as its first argument.

    The programs of two seeds, whose closed-over arrays differ, are then the same program, and no
    array is baked into it.

    Returns:
      ``(constants, *arguments) -> result``, the constants, and the result's shapes and dtypes.
    """
    closed, shapes = jax.make_jaxpr(function, return_shape=True)(*arguments)
    treedef = jax.tree.structure(shapes)

    def call(constants, *arguments):
        program = core.jaxpr_as_fun(core.ClosedJaxpr(closed.jaxpr, constants))
        return treedef.unflatten(program(*jax.tree.leaves(arguments)))

    return call, closed.consts, shapes


@contextlib.contextmanager
def shared_programs() -> Iterator[Path]:
    """Keep compiled programs in a folder while a run lasts, so that its seeds share them."""
    options = {"jax_compilation_cache_dir": None, "jax_persistent_cache_min_compile_time_secs": 0.2}
    before = {name: getattr(jax.config, name) for name in options}
    with tempfile.TemporaryDirectory(prefix="gradkin-") as folder:
        try:
            configure(options | {"jax_compilation_cache_dir": folder})
            yield Path(folder)
        finally:
            configure(before)


def configure(options: dict[str, Any]) -> None:
    """Set options of the cache of programs, and make jax look at them again."""
    for name, value in options.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
