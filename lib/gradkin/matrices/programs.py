"""A traced function as a flat list of steps, and the search for values that may stay unformed."""

import contextlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.extend import core

# Calls that only group equations; their bodies are read in place. `custom_jvp_call` and
# `custom_vjp_call` are left whole: opening them would lose their rule under a further `jax.grad`.
_CALLS = {"jit": "jaxpr", "pjit": "jaxpr", "closed_call": "call_jaxpr", "core_call": "call_jaxpr"}
_REMAT = ("checkpoint", "remat", "remat2")

# Linear in one operand, and only rearranging it: the operand may stay a sum of products.
REARRANGING = frozenset(
    {
        "transpose",
        "reshape",
        "squeeze",
        "broadcast_in_dim",
        "convert_element_type",
        "copy",
        "copy_p",
        "neg",
        "reduce_sum",
        "pad",
        "slice",
        "split",
    }
)
SUMS = frozenset({"add", "add_any", "sub", "concatenate"})
SOURCES = frozenset({"dot_general", "scatter-add", "scatter", "conv_general_dilated", "scan"})


class Slot:
    """A value's place in a program; compared by identity."""

    __slots__ = ("aval",)

    def __init__(self, aval: Any):
        self.aval = aval


class Step(NamedTuple):
    """One equation: ``outputs = fun(*inputs)``; inputs are slots or concrete literals."""

    name: str
    params: dict[str, Any]
    inputs: tuple[Any, ...]
    outputs: tuple[Slot, ...]
    fun: Callable[..., Any]


class Program(NamedTuple):
    """Steps in order; ``constants`` holds the values that were closed over."""

    inputs: tuple[Slot, ...]
    outputs: tuple[Any, ...]
    steps: tuple[Step, ...]
    constants: dict[Slot, Any]

    @property
    def has_remat(self) -> bool:
        """Whether some of it was wrapped in `jax.checkpoint`."""
        return any(step.name == "remat" or _contains_remat(step) for step in self.steps)


def trace(fun: Callable[..., Any], args: Sequence[Any]) -> tuple[Program, Any]:
    """Trace ``fun(*args)`` to a flat program and the structure of its result."""
    closed, shapes = jax.make_jaxpr(fun, return_shape=True)(*args)
    return flatten(closed), jax.tree.structure(shapes)


def flatten(closed: Any) -> Program:
    """Read a closed jaxpr into a program, opening nested calls; unused steps are dropped."""
    steps: list[Step] = []
    constants: dict[Slot, Any] = {}
    inputs = tuple(Slot(v.aval) for v in closed.jaxpr.invars)
    outputs = _read(closed.jaxpr, closed.consts, inputs, steps, constants)
    return Program(inputs, outputs, _prune(steps, outputs), constants)


def _read(
    jaxpr: Any,
    consts: Sequence[Any],
    inputs: Sequence[Any],
    steps: list[Step],
    constants: dict[Slot, Any],
) -> tuple[Any, ...]:
    env: dict[Any, Any] = dict(zip(jaxpr.invars, inputs, strict=True))
    for var, value in zip(jaxpr.constvars, consts, strict=True):
        if isinstance(value, Slot):
            env[var] = value
        else:
            env[var] = Slot(var.aval)
            constants[env[var]] = value

    def look_up(atom: Any) -> Any:
        return atom if isinstance(atom, core.Literal) else env[atom]

    for eqn in jaxpr.eqns:
        name = eqn.primitive.name
        arguments = tuple(look_up(v) for v in eqn.invars)
        if name in _CALLS and _CALLS[name] in eqn.params:
            inner = eqn.params[_CALLS[name]]
            results = _read(inner.jaxpr, inner.consts, arguments, steps, constants)
        elif name in _REMAT:
            if eqn.params["prevent_cse"]:
                # Without the barrier XLA may merge the recomputation with the forward pass and
                # keep the activations that `jax.checkpoint` was asked to drop.
                arguments = _barrier(arguments, steps)
            results = _read(eqn.params["jaxpr"], (), arguments, steps, constants)
        else:
            results = tuple(Slot(v.aval) for v in eqn.outvars)
            steps.append(Step(name, eqn.params, arguments, results, _runner(eqn)))
        env.update(zip(eqn.outvars, results, strict=True))
    return tuple(look_up(v) for v in jaxpr.outvars)


def _runner(eqn: Any) -> Callable[..., Any]:
    context = getattr(getattr(eqn, "ctx", None), "manager", contextlib.nullcontext())

    def run(*values: Any) -> Any:
        bound = eqn.primitive.get_bind_params(eqn.params)
        # Older releases return the sub-functions apart from the parameters.
        subfuns, params = bound if isinstance(bound, tuple) else ((), bound)
        with context:
            results = eqn.primitive.bind(*subfuns, *values, **params)
        return results if eqn.primitive.multiple_results else [results]

    run.effects = bool(eqn.effects)
    return run


def _barrier(arguments: Sequence[Any], steps: list[Step]) -> tuple[Any, ...]:
    slots = [a for a in arguments if isinstance(a, Slot)]
    guarded = [Slot(a.aval) for a in slots]
    if slots:

        def run(*values: Any) -> Any:
            return list(jax.lax.optimization_barrier(values))

        steps.append(Step("remat", {}, tuple(slots), tuple(guarded), run))
    renamed = dict(zip(slots, guarded, strict=True))
    return tuple(renamed[a] if isinstance(a, Slot) else a for a in arguments)


def _contains_remat(step: Step) -> bool:
    bodies = [step.params.get("jaxpr"), *(step.params.get("branches") or ())]
    return any(flatten(body).has_remat for body in bodies if hasattr(body, "jaxpr"))


def _prune(steps: Sequence[Step], outputs: Sequence[Any]) -> tuple[Step, ...]:
    needed = {v for v in outputs if isinstance(v, Slot)}
    kept = []
    for step in reversed(steps):
        if getattr(step.fun, "effects", False) or any(v in needed for v in step.outputs):
            kept.append(step)
            needed.update(v for v in step.inputs if isinstance(v, Slot))
    return tuple(reversed(kept))


def unformed(program: Program, lazy_outputs: Sequence[bool], maybe: set[Slot]) -> set[Slot]:
    """The slots whose value may stay a sum of products.

    A slot is *forced* when a step needs its numbers, directly or through rearranging steps;
    what reaches only the marked outputs need not be multiplied out. Deciding this before
    evaluation keeps the forward pass's own products (residuals of a scan, say) untouched.

    Args:
      program: the steps.
      lazy_outputs: which outputs may stay unformed.
      maybe: inputs that may arrive unformed (scan accumulators).

    Returns:
      The set of slots that are not forced and can come from a source of products.
    """
    possible = set(maybe)
    for step in program.steps:
        if step.name in SOURCES or any(v in possible for v in linear_operands(step, possible)):
            possible.update(step.outputs)
    forced = {
        v
        for v, lazy in zip(program.outputs, lazy_outputs, strict=True)
        if isinstance(v, Slot) and not lazy
    }
    for step in reversed(program.steps):
        alive = any(v not in forced for v in step.outputs)
        free = linear_operands(step, possible, forced) if alive else ()
        # One operand may be both the linear one and another (x * x): then it is needed.
        rest = list(step.inputs)
        for v in free:
            rest.remove(v)
        forced.update(v for v in rest if isinstance(v, Slot))
    return possible - forced


def example_axes(program: Program, gradients: Sequence[bool]) -> dict[Slot, int]:
    """Where the example axis of a gradient was before it was moved to the front.

    Only for values that become one gradient by transposing and converting alone: all that a norm
    needs of them is their square, so a scan may square them where they arise.
    """
    uses: dict[Slot, int] = {}
    for v in (*program.outputs, *(v for step in program.steps for v in step.inputs)):
        if isinstance(v, Slot):
            uses[v] = uses.get(v, 0) + 1
    axes = {
        v: 0
        for v, wanted in zip(program.outputs, gradients, strict=True)
        if wanted and isinstance(v, Slot) and uses[v] == 1
    }
    for step in reversed(program.steps):
        source, result = step.inputs[:1], step.outputs[0]
        if result not in axes or not isinstance(source[0], Slot) or uses[source[0]] != 1:
            continue
        if step.name == "transpose":
            axes[source[0]] = int(step.params["permutation"][axes[result]])
        elif step.name == "convert_element_type":
            axes[source[0]] = axes[result]
    return axes


def linear_operands(step: Step, possible: set[Slot], forced: set[Slot] | None = None) -> tuple:
    """The operands of ``step`` that may stay unformed when its outputs may."""
    forced = forced or set()
    if step.name in REARRANGING:
        return tuple(v for v in step.inputs[:1] if isinstance(v, Slot))
    if step.name in SUMS:
        return tuple(v for v in step.inputs if isinstance(v, Slot))
    if step.name == "mul":
        found = [v for v in step.inputs if isinstance(v, Slot) and v in possible]
        return tuple(found) if len(found) == 1 else ()
    if step.name == "div":
        left, right = step.inputs
        divisor = isinstance(right, Slot) and right in possible
        return (left,) if isinstance(left, Slot) and left in possible and not divisor else ()
    if step.name in ("scatter-add", "scatter"):
        return tuple(v for v in step.inputs[:1] if isinstance(v, Slot))
    if step.name == "scan":
        consts, carries = step.params["num_consts"], step.params["num_carry"]
        return tuple(
            v
            for v, out in zip(
                step.inputs[consts : consts + carries], step.outputs[:carries], strict=True
            )
            if isinstance(v, Slot) and out not in forced
        )
    return ()


def is_zero_literal(value: Any) -> bool:
    """Whether a step's input is the literal number zero."""
    return isinstance(value, core.Literal) and np.ndim(value.val) == 0 and bool(value.val == 0)


def literal_value(value: Any) -> Any:
    """The array behind a literal, with the dtype that its equation saw."""
    return jax.numpy.asarray(value.val, value.aval.dtype) if np.ndim(value.val) else value.val
