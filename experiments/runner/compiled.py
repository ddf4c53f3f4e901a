"""Compile a function of a loop once for all seeds."""

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.extend import core


def compiled(
    function: Callable, *arguments: Any, sharding: jax.sharding.Sharding | None = None
) -> tuple[Callable, Any]:
    """Return the jitted function, and the shapes and dtypes of its result.

    Arrays that the function closes over become arguments of the program: none is baked into it, and
    the programs of two seeds, whose arrays differ, are the same.
    """
    closed, shapes = jax.make_jaxpr(function, return_shape=True)(*arguments)
    treedef = jax.tree.structure(shapes)

    def call(constants, *arguments):
        program = core.jaxpr_as_fun(core.ClosedJaxpr(closed.jaxpr, constants))
        return treedef.unflatten(program(*jax.tree.leaves(arguments)))

    options = {} if sharding is None else {"out_shardings": sharding}
    jitted = jax.jit(call, **options)
    return lambda *arguments: jitted(closed.consts, *arguments), shapes


@contextlib.contextmanager
def shared_programs() -> Iterator[None]:
    """Keep compiled programs in a folder while a run lasts, so that its seeds share them.

    Only for the command line: jax opens the folder at the first compilation and then keeps it.
    """
    with tempfile.TemporaryDirectory(prefix="gradkin-") as folder:
        jax.config.update("jax_compilation_cache_dir", folder)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
        yield
