"""The one loop of an experiment: jitted chunks of `lax.scan`, the host in between."""

import functools
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from tqdm import tqdm

from experiments.runner.checkpoint import Checkpoints
from experiments.runner.compiled import lifted
from experiments.runner.mesh import replicate

Step = Callable[[Any, Any], Any]


class Loop(Protocol):
    """``(step, state, num_steps, *, every, ...) -> (state, history)``, what `run` is given."""

    def __call__(
        self,
        step: Step,
        state: Any,
        num_steps: int,
        *,
        every: int,
        evaluate: Step | None = None,
        data: Any = None,
        name: str = "train",
    ) -> tuple[Any, Any]: ...


def pure_loop(
    step: Step,
    state: Any,
    num_steps: int,
    *,
    every: int,
    evaluate: Step | None = None,
    data: Any = None,
    name: str = "train",
    vmap_seeds: bool = False,
) -> tuple[Any, Any]:
    """Run ``state = step(state, data)`` for ``num_steps`` steps as one traceable scan.

    Args:
      step: ``(state, data) -> state``.
      state: any pytree of arrays and PRNG keys.
      num_steps: the number of steps.
      every: steps between evaluations; divides `num_steps`.
      evaluate: ``(state, data) -> pytree of arrays``, called at steps 0, every, ..., num_steps.
      data: passed on to both; an argument of the compiled program, never a constant in it.
      name: what a progress bar says.
      vmap_seeds: whether the state has a leading axis of seeds, over which both are mapped.

    Returns:
      The last state, and the evaluations stacked on axis 0 (axis 1 behind the seeds), or None.
    """
    chunks = count_chunks(num_steps, every)
    step, measure = over_seeds(step, vmap_seeds), over_seeds(evaluate or nothing, vmap_seeds)
    advance = scan_chunk(step, every)
    state = jax.tree.map(strong, state)
    first = measure(state, data)

    def body(state, _):
        state = advance(state, data)
        return state, measure(state, data)

    state, rest = jax.lax.scan(body, state, length=chunks)
    history = jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), first, rest)
    return state, None if evaluate is None else seeds_first(history, vmap_seeds)


def make_loop(
    folder: Path | None,
    *,
    vmap_seeds: bool = False,
    sharding: jax.sharding.NamedSharding | None = None,
    save_seconds: float = 10.0,
    label: str = "",
    quiet: bool | None = None,
) -> Loop:
    """Return the loop that shows its progress and, between chunks, saves what it has.

    Loops are numbered in the order of the calls. A loop that `folder` holds is continued where it
    was saved, a finished one is read back. A loop that is being traced (inside `vmap`, say) cannot
    be saved: it is the `pure_loop`.

    Args:
      folder: where the checkpoints are; None keeps none.
      vmap_seeds: as in `pure_loop`.
      sharding: of the state and of the evaluations, where the data lie on a mesh.
      save_seconds: seconds between checkpoints; the end of a loop is always saved.
      label: in front of a loop's name on the progress bar.
      quiet: hides the bar; by default where standard error is no terminal.
    """
    numbers = itertools.count()

    def loop(step, state, num_steps, *, every, evaluate=None, data=None, name="train"):
        chunks = count_chunks(num_steps, every)

        def place(leaf):
            return strong(leaf) if sharding is None else replicate(strong(leaf), sharding)

        def compiled(function):
            function = over_seeds(function, vmap_seeds)
            call, constants, shapes = lifted(function, state, data)
            return functools.partial(jax.jit(call, out_shardings=sharding), constants), shapes

        symbolic = traced(state, data)
        if not symbolic:
            state, data = jax.tree.map(place, state), jax.tree.map(jnp.asarray, data)
            advance, _ = compiled(scan_chunk(step, every))
            measure, measured = compiled(evaluate or nothing)
            symbolic = traced(advance.args, measure.args)  # what they close over
        if symbolic:
            options: dict[str, Any] = {"evaluate": evaluate, "data": data, "vmap_seeds": vmap_seeds}
            return pure_loop(step, state, num_steps, every=every, **options)

        number = next(numbers)
        with Checkpoints(folder and folder / f"loop{number:03d}", save_seconds) as checkpoints:
            saved = checkpoints.restore(state, measured)
            if saved is None:
                position, history = 0, [flat(measure(state, data))]
            else:
                position, state, history = saved
                state = jax.tree.map(place, state)
            bar = tqdm(
                total=num_steps,
                initial=position * every,
                desc=f"{label}{name}",
                unit="step",
                disable=quiet,  # None: hidden where stderr is no terminal
                leave=False,
            )
            with bar:
                while position < chunks:
                    state = advance(state, data)
                    history.append(flat(measure(state, data)))
                    jax.block_until_ready(state)
                    position += 1
                    bar.update(every)
                    checkpoints.save(position, state, history, last=position == chunks)
        if evaluate is None:
            return state, None
        columns = [place(np.stack(leaves)) for leaves in zip(*history)]
        stacked = jax.tree.unflatten(jax.tree.structure(measured), columns)
        return state, seeds_first(stacked, vmap_seeds)

    return loop


def traced(*trees: Any) -> bool:
    """Whether any array is not a value yet but being traced."""
    return any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(trees))


def count_chunks(num_steps: int, every: int) -> int:
    """How many times `every` goes into `num_steps`."""
    if every < 1 or num_steps < 0 or num_steps % every:
        raise ValueError(
            f"Expected every to divide num_steps, got every={every} and num_steps={num_steps}."
        )
    return num_steps // every


def scan_chunk(step: Step, every: int) -> Step:
    """`every` steps as one scan."""

    def advance(state, data):
        return jax.lax.scan(lambda s, _: (step(s, data), None), state, length=every)[0]

    return advance


def over_seeds(function: Step, vmap_seeds: bool) -> Step:
    """Map ``function(state, data)`` over the leading axis of the state."""
    return jax.vmap(function, in_axes=(0, None)) if vmap_seeds else function


def nothing(state: Any, data: Any) -> tuple[()]:
    """What is evaluated when nothing is."""
    return ()


def seeds_first(history: Any, vmap_seeds: bool) -> Any:
    """Swap ``[E, S, ...]`` to ``[S, E, ...]``."""
    return jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), history) if vmap_seeds else history


def strong(leaf: Any) -> jax.Array:
    """The leaf as an array with a dtype of its own, so that a restored state traces the same."""
    if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return leaf
    leaf = jnp.asarray(leaf)
    return jax.lax.convert_element_type(leaf, leaf.dtype)


def flat(tree: Any) -> list[np.ndarray]:
    """The leaves on the host."""
    return [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]
