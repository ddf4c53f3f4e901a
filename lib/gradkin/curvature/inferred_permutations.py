"""The hidden permutations of a model, read off its jaxpr."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from gradkin.curvature.axis_ties import Axes, Axis, Ties
from gradkin.curvature.permutations import PermutationSpec, leaves_with_paths
from gradkin.typing import PyTree

# What is done to each number by itself. Anything that is neither here nor has a rule below fixes
# the order along all its axes: an unknown primitive costs symmetry, never soundness.
ELEMENTWISE = """
abs acos acosh add add_any and asin asinh atan atan2 atanh cbrt ceil clamp conj
convert_element_type copy copy_p cos cosh digamma div eq eq_to erf erf_inv erfc exp exp2 expm1
floor ge gt igamma igammac imag integer_pow is_finite le le_to lgamma log log1p logistic lt
lt_to max min mul name ne neg nextafter not or polygamma population_count pow pvary real
reduce_precision rem round rsqrt select_n shift_left shift_right_arithmetic shift_right_logical
sharding_constraint sign sin sinh sqrt square stop_gradient sub tan tanh xor
"""
REDUCTIONS = ("sum", "max", "min", "prod", "and", "or", "xor")
CUMULATIVE = ("cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp")
CALLS = ("jit", "pjit", "closed_call", "core_call", "checkpoint", "remat", "remat2")
CUSTOM = ("custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr")


def infer_permutations(fun: Callable[..., Any], params: PyTree, *inputs: Any) -> PermutationSpec:
    """Find which axes of the parameters can be permuted together without changing the function.

    Reads the function's jaxpr: what is added elementwise, contracted or convolved must be permuted
    alike; the order along the axes of inputs and outputs is fixed. So residual streams tie the
    layers that write to them, normalisation parameters follow their channels, heads and the
    features inside them move apart, and flattened images move by channels. A permutation is named
    after the first parameter's axis that it moves: "layer0/bias:0".

    Args:
      fun: ``fun(params, *inputs) -> outputs`` as it is evaluated (random masks fix units). If
        ``params`` includes statistics of batch normalisation, they are permuted too.
      params: the parameters, or their shapes.
      inputs: the other arguments, or their shapes (`jax.ShapeDtypeStruct`).

    Returns:
      `PermutationSpec`. Sound for every function: where a primitive is not known, less can be
      permuted, so the spec may be smaller than the model's symmetry, never larger.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from gradkin import curvature
      >>> model = lambda params, x: jax.nn.relu(x @ params["first"]) @ params["last"]
      >>> params = {"first": jnp.ones((5, 3)), "last": jnp.ones((3, 2))}
      >>> curvature.infer_permutations(model, params, jnp.ones((7, 5))).axes()
      {'first': (None, 'first:1'), 'last': ('first:1', None)}

    References:
      Ainsworth, Hayase & Srinivasa (2023), "Git Re-Basin", arXiv:2209.04836, which states the
      permutations of each model by hand. :cite:`ainsworth:23`
    """
    as_shapes = lambda tree: jax.tree.map(as_shape, tree)
    closed = jax.make_jaxpr(fun)(as_shapes(params), *as_shapes(inputs))
    leaves = leaves_with_paths(params)
    ties = Ties()
    of_params = [ties.axes(np.shape(leaf)) for _, leaf in leaves]
    of_inputs = [
        ties.axes(var.aval.shape, fixed=True) for var in closed.jaxpr.invars[len(leaves) :]
    ]
    for axes in walk(ties, closed, [*of_params, *of_inputs]):
        ties.fix(*axes)

    names: dict[int, str] = {}
    found = []
    for (path, leaf), axes in zip(leaves, of_params):
        named = []
        for number, axis in enumerate(axes):
            flat = ties.flat(axis)
            for factor in flat:
                if not ties.fixed[factor] and factor not in names:
                    at = f"{path}:{number}"
                    taken = sum(name.split("#")[0] == at for name in names.values())
                    names[factor] = f"{at}#{taken}" if taken else at
            parts = [(ties.size[factor], names.get(factor)) for factor in flat]
            named.append(tuple(merged(parts)) or ((np.shape(leaf)[number], None),))
        found.append((path, tuple(named)))
    return PermutationSpec(tuple(found))


def as_shape(leaf: Any) -> jax.ShapeDtypeStruct:
    """Shape and dtype of an array, of a Python number, or of what already is one."""
    dtype = leaf.dtype if hasattr(leaf, "dtype") else jnp.asarray(leaf).dtype
    return jax.ShapeDtypeStruct(np.shape(leaf), dtype)


def merged(parts: list[tuple[int, str | None]]) -> list[tuple[int, str | None]]:
    """Neighbouring factors that do not move, as one."""
    found = []
    for name, group in itertools.groupby(parts, key=lambda part: part[1]):
        sizes = [size for size, _ in group]
        fixed = [(int(np.prod(sizes)), None)]
        found += fixed if name is None else [(size, name) for size in sizes]
    return found


def walk(ties: Ties, program: Any, inputs: Sequence[Axes]) -> list[Axes]:
    """Tie the axes of every value of a (closed) jaxpr; return those of its outputs."""
    jaxpr, consts = (program.jaxpr, program.consts) if hasattr(program, "consts") else (program, [])
    known: dict[Any, Axes] = dict(zip(jaxpr.invars, inputs))
    for var, value in zip(jaxpr.constvars, consts):
        known[var] = ties.axes(np.shape(value), fixed=True)

    def read(atom: Any) -> Axes:
        if isinstance(atom, core.Literal):
            return ties.axes(np.shape(atom.val), fixed=True)
        return known[atom]

    for eqn in jaxpr.eqns:
        name = eqn.primitive.name
        rule = elementwise if name in ELEMENTWISE.split() else RULES.get(name, unknown)
        outputs = rule(ties, eqn, [read(atom) for atom in eqn.invars])
        known |= zip(eqn.outvars, outputs)
    return [read(atom) for atom in jaxpr.outvars]


def unknown(ties: Ties, eqn: Any, inputs: list[Axes]) -> list[Axes]:
    for axes in inputs:
        ties.fix(*axes)
    return [ties.axes(getattr(var.aval, "shape", ()), fixed=True) for var in eqn.outvars]


def elementwise(ties: Ties, eqn: Any, inputs: list[Axes]) -> list[Axes]:
    shape = eqn.outvars[0].aval.shape
    found = []
    for i, size in enumerate(shape):
        # Operands may be numbers, or have one entry along an axis: it is repeated.
        whole = [
            axes[i]
            for axes, atom in zip(inputs, eqn.invars)
            if len(axes) == len(shape) and atom.aval.shape[i] == size
        ]
        for axis in whole[1:]:
            ties.tie(whole[0], axis)
        found.append(whole[0])
    return [tuple(found)]


def barrier(ties: Ties, eqn: Any, inputs: list[Axes]) -> list[Axes]:
    return inputs


def broadcast(ties: Ties, eqn: Any, inputs: list[Axes]) -> list[Axes]:
    shape, places = eqn.params["shape"], eqn.params["broadcast_dimensions"]
    old = eqn.invars[0].aval.shape
    # Along a new axis all entries are equal: any order is the same.
    found = list(ties.axes(shape))
    for at, (axis, size) in zip(places, zip(inputs[0], old)):
        if size == shape[at]:
            found[at] = axis
    return [tuple(found)]


def dot(ties: Ties, eqn: Any, inputs: list[Axes]) -> list[Axes]:
    (left_sum, right_sum), (left_batch, right_batch) = eqn.params["dimension_numbers"]
    left, right = inputs
    for i, j in [*zip(left_sum, right_sum), *zip(left_batch, right_batch)]:
        ties.tie(left[i], right[j])
    free = [axis for i, axis in enumerate(left) if i not in (*left_sum, *left_batch)]
    free += [axis for i, axis in enumerate(right) if i not in (*right_sum, *right_batch)]
    return [(*(left[i] for i in left_batch), *free)]


def convolution(ties: Ties, eqn: Any, inputs: list[Axes]) -> list[Axes]:
    numbers, groups = eqn.params["dimension_numbers"], eqn.params["feature_group_count"]
    if eqn.params["batch_group_count"] != 1:
        return unknown(ties, eqn, inputs)
    images, kernel = inputs
    n, channels, *places = numbers.lhs_spec
    features, channels_in_group, *taps = numbers.rhs_spec
    ties.fix(*(images[i] for i in places), *(kernel[i] for i in taps))
    # Groups move as wholes, and the channels inside them all alike.
    group = ties.new(groups)
    in_group = ties.new(eqn.invars[1].aval.shape[features] // groups)
    ties.tie(images[channels], group + kernel[channels_in_group])
    ties.tie(kernel[features], group + in_group)
    found = list(ties.axes(eqn.outvars[0].aval.shape, fixed=True))
    found[numbers.out_spec[0]], found[numbers.out_spec[1]] = images[n], kernel[features]
    return [tuple(found)]


def reshape(ties: Ties, eqn: Any, inputs: list[Axes]) -> list[Axes]:
    if eqn.params.get("dimensions") is not None:
        return unknown(ties, eqn, inputs)
    return [ties.reshaped(inputs[0], eqn.outvars[0].aval.shape)]


def transpose(ties: Ties, eqn: Any, inputs: list[Axes]) -> list[Axes]:
    return [tuple(inputs[0][i] for i in eqn.params["permutation"])]


def squeeze(ties: Ties, eqn: Any, inputs: list[Axes]) -> list[Axes]:
    return [without(inputs[0], eqn.params["dimensions"])]


def reduction(ties: Ties, eqn: Any, inputs: list[Axes]) -> list[Axes]:
    return [without(inputs[0], eqn.params["axes"])]


def arg_reduction(ties: Ties, eqn: Any, inputs: list[Axes]) -> list[Axes]:
    ties.fix(*(inputs[0][i] for i in eqn.params["axes"]))
    return reduction(ties, eqn, inputs)


def cumulative(ties: Ties, eqn: Any, inputs: list[Axes]) -> list[Axes]:
    ties.fix(inputs[0][eqn.params["axis"]])
    return inputs


def reverse(ties: Ties, eqn: Any, inputs: list[Axes]) -> list[Axes]:
    ties.fix(*(inputs[0][i] for i in eqn.params["dimensions"]))
    return inputs


def sort(ties: Ties, eqn: Any, inputs: list[Axes]) -> list[Axes]:
    for axes in inputs:
        ties.tie_axes(inputs[0], axes)
    ties.fix(inputs[0][eqn.params["dimension"]])
    return inputs


def concatenate(ties: Ties, eqn: Any, inputs: list[Axes]) -> list[Axes]:
    at = eqn.params["dimension"]
    ties.fix(*(axes[at] for axes in inputs))
    for axes in inputs[1:]:
        ties.tie_axes(without(inputs[0], (at,)), without(axes, (at,)))
    return [replaced(ties, eqn.outvars[0], inputs[0], {at})]


def split(ties: Ties, eqn: Any, inputs: list[Axes]) -> list[Axes]:
    at = eqn.params["axis"]
    ties.fix(inputs[0][at])
    return [replaced(ties, var, inputs[0], {at}) for var in eqn.outvars]


def kept_whole(ties: Ties, eqn: Any, inputs: list[Axes]) -> list[Axes]:
    """Pads, slices and windows: an axis that is left as it is keeps its order free."""
    params, old = eqn.params, eqn.invars[0].aval.shape
    match eqn.primitive.name:
        case "pad":
            whole = [config == (0, 0, 0) for config in params["padding_config"]]
        case "slice":
            steps = params["strides"] or (1,) * len(old)
            starts, stops = params["start_indices"], params["limit_indices"]
            whole = [(a, b, c) == (0, n, 1) for a, b, c, n in zip(starts, stops, steps, old)]
        case "dynamic_slice":
            whole = [size == n for size, n in zip(params["slice_sizes"], old)]
        case _:
            one = (1,) * len(old)
            parts = ("window_dimensions", "window_strides", "base_dilation", "window_dilation")
            options = [params.get(part) or one for part in parts]
            padding = params["padding"]
            whole = [
                (*sizes, *pads) == (1, 1, 1, 1, 0, 0) for *sizes, pads in zip(*options, padding)
            ]
    changed = {i for i, same in enumerate(whole) if not same}
    ties.fix(*(inputs[0][i] for i in changed))
    return [replaced(ties, eqn.outvars[0], inputs[0], changed)]


def dynamic_update(ties: Ties, eqn: Any, inputs: list[Axes]) -> list[Axes]:
    old, new = eqn.invars[0].aval.shape, eqn.invars[1].aval.shape
    for i, (one, other) in enumerate(zip(*inputs[:2])):
        if old[i] == new[i]:
            ties.tie(one, other)
        else:
            ties.fix(one, other)
    return inputs[:1]


def gather(ties: Ties, eqn: Any, inputs: list[Axes]) -> list[Axes]:
    numbers, sizes = eqn.params["dimension_numbers"], eqn.params["slice_sizes"]
    operand, indices = inputs
    shape = eqn.invars[0].aval.shape
    gone = {*numbers.collapsed_slice_dims, *getattr(numbers, "operand_batching_dims", ())}
    found = list(ties.axes(eqn.outvars[0].aval.shape, fixed=True))
    left = [i for i in range(len(shape)) if i not in gone]
    for i, at in zip(left, numbers.offset_dims):
        if sizes[i] == shape[i] and i not in numbers.start_index_map:
            found[at] = operand[i]
        else:
            ties.fix(operand[i])
    ties.fix(*indices, *(operand[i] for i in gone))
    return [tuple(found)]


def iota(ties: Ties, eqn: Any, inputs: list[Axes]) -> list[Axes]:
    found = ties.axes(eqn.outvars[0].aval.shape)
    ties.fix(found[eqn.params["dimension"]])
    return [found]


def call(ties: Ties, eqn: Any, inputs: list[Axes]) -> list[Axes]:
    names = ("jaxpr", "call_jaxpr", "fun_jaxpr")
    return walk(ties, next(eqn.params[name] for name in names if name in eqn.params), inputs)


def scan(ties: Ties, eqn: Any, inputs: list[Axes]) -> list[Axes]:
    consts, carried = eqn.params["num_consts"], eqn.params["num_carry"]
    carry, scanned = inputs[consts : consts + carried], inputs[consts + carried :]
    ties.fix(*(axes[0] for axes in scanned))
    sliced = [axes[1:] for axes in scanned]
    outputs = walk(ties, eqn.params["jaxpr"], [*inputs[:consts], *carry, *sliced])
    for before, after in zip(carry, outputs):
        ties.tie_axes(before, after)
    steps = ties.new(eqn.params["length"], fixed=True)
    return [*carry, *((steps, *axes) for axes in outputs[carried:])]


def while_loop(ties: Ties, eqn: Any, inputs: list[Axes]) -> list[Axes]:
    of_cond, of_body = eqn.params["cond_nconsts"], eqn.params["body_nconsts"]
    carry = inputs[of_cond + of_body :]
    walk(ties, eqn.params["cond_jaxpr"], [*inputs[:of_cond], *carry])
    outputs = walk(ties, eqn.params["body_jaxpr"], [*inputs[of_cond : of_cond + of_body], *carry])
    for before, after in zip(carry, outputs):
        ties.tie_axes(before, after)
    return carry


def cond(ties: Ties, eqn: Any, inputs: list[Axes]) -> list[Axes]:
    first, *rest = (walk(ties, branch, inputs[1:]) for branch in eqn.params["branches"])
    for other in rest:
        for one, two in zip(first, other):
            ties.tie_axes(one, two)
    return first


def without(axes: Axes, dropped: Sequence[int]) -> Axes:
    """The axes that are not dropped."""
    return tuple(axis for i, axis in enumerate(axes) if i not in dropped)


def replaced(ties: Ties, var: Any, axes: Axes, changed: set[int]) -> Axes:
    """The axes of an output, fixed ones in place of those that changed."""
    shape = var.aval.shape
    new: list[Axis] = list(axes)
    for i in changed:
        new[i] = ties.new(shape[i], fixed=True)
    return tuple(new)


RULES: dict[str, Callable[[Ties, Any, list[Axes]], list[Axes]]] = {
    "argmax": arg_reduction,
    "argmin": arg_reduction,
    "broadcast_in_dim": broadcast,
    "concatenate": concatenate,
    "cond": cond,
    "conv_general_dilated": convolution,
    "dot_general": dot,
    "dynamic_slice": kept_whole,
    "dynamic_update_slice": dynamic_update,
    "gather": gather,
    "iota": iota,
    "optimization_barrier": barrier,
    "pad": kept_whole,
    "reduce_window_max": kept_whole,
    "reduce_window_min": kept_whole,
    "reduce_window_sum": kept_whole,
    "reshape": reshape,
    "rev": reverse,
    "scan": scan,
    "sort": sort,
    "split": split,
    "squeeze": squeeze,
    "transpose": transpose,
    "while": while_loop,
    **{f"reduce_{name}": reduction for name in REDUCTIONS},
    **dict.fromkeys(CUMULATIVE, cumulative),
    **dict.fromkeys((*CALLS, *CUSTOM), call),
}
