"""Backward scans: stacked products come out as stacked factors, accumulated ones as longer sums."""

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
from jax import lax

from gradkin.matrices import lazy, products, programs
from gradkin.matrices.lazy import Accumulator, AccumulatorUsed, Label, Lazy, OneHot, Product
from gradkin.matrices.programs import Program, Slot, Step


def evaluate_scan(
    step: Step,
    read: Callable[[Any], Any],
    numbers: Callable[[Any], Any],
    unformed: set[Slot],
    evaluate: Callable[..., list[Any]],
    squares: dict[Slot, int],
) -> list[Any]:
    """Run a scan whose stacked outputs or pure accumulators may stay unformed.

    A product found inside the body gets one more label, the iteration. For a stacked output it
    leads the output (a layer axis); for a carry that the body only adds to, it is summed over
    like a time axis: that is the whole rule for weights shared between iterations. Each factor
    leaves the scan once, however many products use it; one that is an input slice or a constant
    is taken from outside. Of outputs in ``squares`` only the squared norms leave the scan.
    """
    params = step.params
    closed = params["jaxpr"]
    length, num_consts, num_carry = params["length"], params["num_consts"], params["num_carry"]
    body = programs.flatten(closed)
    consts = [numbers(v) for v in step.inputs[:num_consts]]
    starts = step.inputs[num_consts : num_consts + num_carry]
    slices = [numbers(v) for v in step.inputs[num_consts + num_carry :]]
    accumulators = {k for k in range(num_carry) if step.outputs[k] in unformed}
    stacked = [v in unformed for v in step.outputs[num_carry:]]
    # The example axis inside the body, where the layer axis in front is missing.
    squared = {
        num_carry + k: squares[v] - 1
        for k, v in enumerate(step.outputs[num_carry:])
        if stacked[k] and squares.get(v, 0) > 0
    }
    owner = object()

    while True:
        try:
            return _attempt(
                body, params, consts, starts, slices, accumulators, stacked, read, numbers,
                evaluate, length, num_carry, owner, squared, step.outputs,
            )  # fmt: skip
        except AccumulatorUsed as bail:
            if bail.accumulator.owner is not owner:
                raise  # the carry of a scan around this one
            accumulators = accumulators - {bail.accumulator.index}


def _attempt(
    body: Program,
    params: dict[str, Any],
    consts: Sequence[Any],
    starts: Sequence[Any],
    slices: Sequence[Any],
    accumulators: set[int],
    stacked: Sequence[bool],
    read: Callable[[Any], Any],
    numbers: Callable[[Any], Any],
    evaluate: Callable[..., list[Any]],
    length: int,
    num_carry: int,
    owner: Any,
    squared: dict[int, int],
    step_outputs: Sequence[Slot],
) -> list[Any]:
    kept = [k for k in range(num_carry) if k not in accumulators]
    lazy_outputs = [k in accumulators for k in range(num_carry)] + list(stacked)
    carry_slots = body.inputs[len(consts) : len(consts) + num_carry]
    found: dict[str, Any] = {}

    def run(carry: list[Any], x: list[Any]) -> tuple[list[Any], Any]:
        values: list[Any] = [None] * num_carry
        for k, value in zip(kept, carry, strict=True):
            values[k] = value
        for k in accumulators:
            aval = carry_slots[k].aval
            values[k] = Lazy(aval.shape, aval.dtype, (_start(owner, k, aval),))
        outputs = evaluate(
            body, [*consts, *values, *x], lazy_outputs, {carry_slots[k] for k in accumulators}
        )
        for k in accumulators:
            outputs[k] = _products_added(outputs[k], _start(owner, k, carry_slots[k].aval))
        norms = {}
        for k, axis in squared.items():
            value = lazy.as_lazy(outputs[k])
            order = (axis, *(d for d in range(len(value.shape)) if d != axis))
            norms[k] = products.squared_norms_of(lazy.transpose(value, order))
            outputs[k] = None
        emitted = _Emitted(consts, x)
        results = [
            emitted.lift(value, summed=k < num_carry) if isinstance(value, Lazy) else None
            for k, value in enumerate(outputs)
        ]
        found["results"], found["emitted"] = results, emitted
        next_carry = [outputs[k].astype(carry_slots[k].aval.dtype) for k in kept]
        ys = [None if isinstance(v, Lazy) else v for v in outputs[num_carry:]]
        return next_carry, (ys, emitted.arrays, norms)

    carry = [numbers(starts[k]) for k in kept]
    final, (ys, factors, norms) = lax.scan(
        run,
        carry,
        list(slices),
        length=length,
        reverse=params["reverse"],
        unroll=params["unroll"],
    )
    emitted: _Emitted = found["emitted"]
    outputs: list[Any] = [None] * num_carry
    for k, value in zip(kept, final, strict=True):
        outputs[k] = value
    outputs += list(ys)
    for k, values in norms.items():
        aval = step_outputs[k].aval
        outputs[k] = Lazy(aval.shape, aval.dtype, (lazy.Squares(jnp.sum(values, 0)),))
    iteration = Label(length)
    for k, result in enumerate(found["results"]):
        if result is None:
            continue
        value = emitted.restore(result, iteration, factors, slices, summed=k < num_carry)
        if k < num_carry:
            value = lazy.add(lazy.as_lazy(read(starts[k])), value)
        outputs[k] = value
    return outputs


def _start(owner: object, index: int, aval: Any) -> Accumulator:
    return Accumulator(owner, index, tuple(range(len(aval.shape))))


def _products_added(value: Any, start: Accumulator) -> Lazy:
    """What one iteration adds to an accumulator, if adding products is all it does."""
    terms = list(value.terms) if isinstance(value, Lazy) else []
    own = [term for term in terms if isinstance(term, Accumulator)]
    if own != [start] or not all(isinstance(term, Product) for term in terms if term not in own):
        raise AccumulatorUsed(start)
    return value._replace(terms=tuple(term for term in terms if isinstance(term, Product)))


class _Emitted:
    """The arrays that must leave the scan: each once, by identity."""

    def __init__(self, consts: Sequence[Any], slices: Sequence[Any]):
        self.arrays: list[Any] = []
        self.places: dict[int, tuple[str, int]] = {}
        self.alive: list[Any] = [*consts, *slices]  # ids stay valid while the objects live
        for kind, values in (("const", consts), ("slice", slices)):
            for i, value in enumerate(values):
                self.places.setdefault(id(value), (kind, i))
        self.consts = consts

    def place(self, array: Any) -> tuple[str, int]:
        if id(array) not in self.places:
            self.places[id(array)] = ("emitted", len(self.arrays))
            self.arrays.append(array)
            self.alive.append(array)
        return self.places[id(array)]

    def lift(self, value: Lazy, *, summed: bool) -> Lazy:
        """Replace each array by the place where it will be found after the scan."""
        terms = []
        for term in value.terms:
            if isinstance(term, Product):
                a = term.a._replace(array=self.place(term.a.array))
                d = term.d._replace(array=self.place(term.d.array))
                terms.append(term._replace(a=a, d=d))
            elif isinstance(term, Accumulator):
                raise AccumulatorUsed(term)
            else:
                terms.append(self.place(jnp.asarray(term)))
        return value._replace(terms=tuple(terms))

    def restore(
        self,
        value: Lazy,
        iteration: Label,
        factors: Sequence[Any],
        slices: Sequence[Any],
        *,
        summed: bool,
    ) -> Lazy:
        def find(place: tuple[str, int]) -> tuple[Any, bool]:
            kind, index = place
            if kind == "const":
                return self.consts[index], False
            return (factors if kind == "emitted" else slices)[index], True

        def factor(side: Any, force_stack: bool) -> Any:
            array, is_stacked = find(side.array)
            if force_stack and not is_stacked:
                array = jnp.broadcast_to(array[None], (iteration.size, *array.shape))
                is_stacked = True
            labels = (iteration, *side.labels) if is_stacked else side.labels
            return side._replace(array=array, labels=labels)

        terms = []
        for term in value.terms:
            if isinstance(term, Product):
                a = factor(term.a, False)
                # Row ids come with updates of the same indices.
                d = factor(term.d, isinstance(a, OneHot) or iteration not in a.labels)
                out = term.out if summed else ((iteration,), *term.out)
                terms.append(Product(a, d, out))
            else:
                array, is_stacked = find(term)
                if not is_stacked:
                    array = jnp.broadcast_to(array[None], (iteration.size, *array.shape))
                terms.append(array)
        shape = value.shape if summed else (iteration.size, *value.shape)
        return Lazy(shape, value.dtype, tuple(terms))
