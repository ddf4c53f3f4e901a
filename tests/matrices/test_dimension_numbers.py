"""Contractions with any dimension numbers, reshapes and transposes, chosen by hypothesis."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.matrices import oracle
from tests.matrices.models.model import Model, normal

LETTERS = "abcde"


@st.composite
def contractions(draw):
    """An einsum of one example with one or two parameters, over any shared and summed letters."""
    sizes = {letter: draw(st.integers(1, 4)) for letter in LETTERS}
    letters = st.lists(st.sampled_from(LETTERS), min_size=1, max_size=3, unique=True)
    x, *params = draw(st.tuples(letters, letters, letters))
    present = sorted({*x, *params[0], *params[1]})
    out = draw(st.lists(st.sampled_from(present), max_size=3, unique=True))
    order = draw(st.permutations(range(len(params[0]))))
    return sizes, "".join(x), ["".join(p) for p in params], "".join(out), tuple(order)


@settings(max_examples=12)
@given(contractions(), st.integers(1, 3))
def test_einsum(case, num_examples):
    sizes, x, params, out, order = case

    def shape(letters):
        return tuple(sizes[letter] for letter in letters)

    def loss(params, x_value):
        first = params["first"].reshape(shape(names[0])[::-1]).transpose(back)
        y = jnp.einsum(f"{x},{names[0]}->{kept}", x_value, first)
        z = jnp.einsum(f"{kept},{names[1]}->{out}", jnp.tanh(y), params["second"])
        return jnp.sum(jnp.tanh(z)) + 0.1 * jnp.sum(z * z)

    # Stored flat in another order of axes than it is used in.
    names = ["".join(params[0][i] for i in order), params[1]]
    back = tuple(range(len(names[0])))[::-1]
    kept = "".join(sorted({*x, *names[0]} & {*out, *names[1], *x}))
    values = {
        "first": normal(0, math.prod(shape(names[0]))),
        "second": normal(1, *shape(params[1])),
    }
    model = Model(loss, (values, normal(2, num_examples, *shape(x))))
    oracle.assert_exact(model, route="factors")


@st.composite
def products(draw):
    """Arguments of one `dot_general` between an example and a parameter."""
    axes = draw(st.integers(1, 3))
    sizes = draw(st.lists(st.integers(1, 4), min_size=axes, max_size=axes))
    roles = draw(st.lists(st.sampled_from("sbf"), min_size=axes, max_size=axes))
    extra = draw(st.lists(st.integers(1, 3), max_size=2))
    shared = [i for i, role in enumerate(roles) if role != "f"]
    right = [sizes[i] for i in shared] + extra
    order = draw(st.permutations(range(len(right))))
    where = {i: order.index(k) for k, i in enumerate(shared)}
    summed = [i for i in shared if roles[i] == "s"]
    batch = [i for i in shared if roles[i] == "b"]
    numbers = (
        (tuple(summed), tuple(where[i] for i in summed)),
        (tuple(batch), tuple(where[i] for i in batch)),
    )
    return tuple(sizes), tuple(right[i] for i in order), numbers, draw(st.booleans())


@settings(max_examples=12)
@given(products())
def test_dot_general(case):
    left, right, numbers, swapped = case

    def loss(params, x):
        pair = (x, params["w"]) if not swapped else (params["w"], x)
        flipped: Any = numbers if not swapped else tuple((b, a) for a, b in numbers)
        y = jnp.tanh(jax.lax.dot_general(*pair, flipped))
        return jnp.sum(y * jnp.cos(jnp.arange(y.size, dtype=jnp.float32)).reshape(y.shape))

    model = Model(loss, ({"w": normal(0, *right)}, normal(1, 2, *left)))
    oracle.assert_exact(model, route="factors")


@st.composite
def regroupings(draw):
    """A stored shape, then reshapes and transposes, until two axes are left."""
    factors = draw(st.lists(st.sampled_from([1, 2, 3]), min_size=2, max_size=5))
    cuts = sorted(draw(st.lists(st.integers(0, len(factors)), max_size=3)))
    groups = np.split(np.asarray(factors), cuts)
    stored = tuple(int(np.prod(group)) for group in groups)
    order = draw(st.permutations(range(len(factors))))
    cut = draw(st.integers(1, len(factors) - 1))
    return tuple(factors), stored, tuple(order), cut


@settings(max_examples=12)
@given(regroupings())
def test_reshapes_and_transposes(case):
    factors, stored, order, cut = case
    used = [factors[i] for i in order]
    rows, columns = math.prod(used[:cut]), math.prod(used[cut:])

    def loss(params, x):
        w = params["w"].reshape(factors).transpose(order).reshape(rows, columns)
        # A second use in the stored order: both must be split at the same places or be formed.
        plain = params["w"].reshape(-1)
        return jnp.sum(jnp.tanh(x @ w)) + jnp.tanh(jnp.sum(plain)) * jnp.sum(x)

    model = Model(loss, ({"w": normal(0, *stored)}, normal(1, 2, 2, rows)))
    oracle.assert_exact(model, route="factors")


@settings(max_examples=8)
@given(
    st.lists(st.integers(1, 4), min_size=3, max_size=3),
    st.integers(0, 2),
    st.lists(st.integers(1, 3), max_size=2),
)
def test_lookups(shape, axis, ids_shape):
    """Reading along any axis of a table, at ids of any rank."""
    ids = np.random.default_rng(0).integers(0, shape[axis], (3, *ids_shape)).astype(np.int32)

    def loss(params, index):
        y = jnp.take(params["table"], index, axis=axis)
        return jnp.sum(
            jnp.tanh(y) * jnp.cos(jnp.arange(y.size, dtype=jnp.float32)).reshape(y.shape)
        )

    model = Model(loss, ({"table": normal(0, *shape)}, jnp.asarray(ids)))
    oracle.assert_exact(model, route="factors")


@settings(max_examples=8)
@given(
    st.integers(1, 5),
    st.integers(1, 3),
    st.integers(1, 2),
    st.integers(1, 2),
    st.integers(1, 2),
    st.sampled_from(["SAME", "VALID", "own"]),
    st.booleans(),
)
def test_convolutions(extra, size, stride, dilation, groups, padding, flip):
    """Kernel sizes, strides, dilations, groups, paddings of a one-dimensional convolution."""
    length = dilation * (size - 1) + extra
    padding = [(1, 2)] if padding == "own" else padding

    def loss(params, x):
        y = jax.lax.conv_general_dilated(
            x[None],
            params["kernel"],
            (stride,),
            padding,
            rhs_dilation=(dilation,),
            feature_group_count=groups,
            dimension_numbers=("NCW", "OIW", "NCW") if flip else ("NWC", "WIO", "NWC"),
        )
        return jnp.sum(
            jnp.tanh(y) * jnp.cos(jnp.arange(y.size, dtype=jnp.float32)).reshape(y.shape)
        )

    kernel = (size, 2, 2 * groups)
    x = (length, 2 * groups)
    values = normal(0, *(kernel[::-1] if flip else kernel))
    model = Model(loss, ({"kernel": values}, normal(1, 2, *(x[::-1] if flip else x))))
    oracle.assert_exact(model, route="factors")
