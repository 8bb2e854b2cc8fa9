"""Operations with kernels, and operations on each entry."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from opnorm import linalg
from opnorm.operators import kernel_forms, layer_values
from opnorm.operators.kernel_forms import Form
from opnorm.operators.known_values import (
    IDENTITIES,
    JOINS,
    Equation,
    concrete,
    once,
    single_number,
)
from opnorm.operators.layer_reader import BATCH, Handler, Reader
from opnorm.operators.layer_values import Known, Live, Value, broadcast
from opnorm.operators.slopes import SLOPES, UNBOUNDED

_SHIFTS = ("add", "sub", "add_any")
_CHOICES = ("max", "min", "select_n", "clamp")
_COMPARISONS = (
    *("eq", "ne", "lt", "le", "gt", "ge", "and", "or", "xor", "not", "is_finite"),
    *("eq_to", "lt_to", "le_to"),
)


def _convolution(reader: Reader, eqn: Equation, inputs: list[Value]) -> Live | None:
    image, kernel = inputs
    if isinstance(image, Known) or isinstance(kernel, Live):
        return None
    form = kernel_forms.convolution_form(image.shape, kernel.shape, eqn.params, BATCH)
    if form is None or image.discrete:
        return None
    return reader.add_layer(form, kernel, image, eqn.outvars[0].aval.shape)


def _product(reader: Reader, eqn: Equation, inputs: list[Value]) -> Live | None:
    first, second = inputs
    (left, right), (left_batch, right_batch) = eqn.params["dimension_numbers"]
    if isinstance(first, Live) and isinstance(second, Known):
        value, kernel = first, second
        dimensions = (left, right), (left_batch, right_batch)
    elif isinstance(first, Known) and isinstance(second, Live):
        value, kernel = second, first
        dimensions = (right, left), (right_batch, left_batch)
    else:
        return None
    form = kernel_forms.product_form(
        value.shape,
        kernel.shape,
        dimensions,
        BATCH,
        kernel_first=isinstance(first, Known),
    )
    if form is None or value.discrete:
        return None
    shape = eqn.outvars[0].aval.shape
    if kernel.sources or form.kind != "dense":
        return reader.add_layer(form, kernel, value, shape)
    array = concrete(kernel)
    if array is None:
        return None
    # A matrix of the program, such as one that averages, is no parameter.
    steps = kernel_forms.apply_steps(jnp.asarray(array), form.steps)
    size = float(np.linalg.norm(np.asarray(steps, np.float64), 2))
    gain, node = reader.settle(value)
    return layer_values.fresh(shape, node, gain * size)


def _embedding(reader: Reader, eqn: Equation, inputs: list[Value]) -> Live | None:
    table, indices = inputs[:2]
    shape = eqn.outvars[0].aval.shape
    if isinstance(table, Live):
        if isinstance(indices, Live):
            return None
        where = concrete(indices)
        if where is None:
            return None

        def gather(index: np.ndarray) -> np.ndarray:
            bound = dict(eqn.primitive.get_bind_params(eqn.params))
            if bound["fill_value"] is not None:
                bound["fill_value"] = -1
            found = eqn.primitive.bind(jnp.asarray(index, jnp.int32), where, **bound)
            return np.asarray(found)

        return layer_values.moved(table, gather)
    numbers = eqn.params["dimension_numbers"]
    sizes = tuple(eqn.params["slice_sizes"])
    whole = sizes[:1] == (1,) and sizes[1:] == tuple(table.shape[1:])
    rows = tuple(numbers.start_index_map) == (0,) and whole
    if not rows or not isinstance(indices, Live) or not table.sources:
        return None
    if not reader.is_token(indices):
        return None
    count, width = table.shape[0], math.prod(table.shape[1:])
    places = math.prod(shape) // width // BATCH
    input_shape = (*indices.shape[1:-1], count)
    if math.prod(input_shape) != places * count:
        input_shape = (places, count)
    form = Form("embedding", (("reshape", (count, width)),), input_shape, {})
    one_hot = layer_values.fresh(input_shape, 0)
    return reader.add_layer(form, table, one_hot, shape)


def _entrywise(reader: Reader, eqn: Equation, inputs: list[Value]) -> Live | None:
    """A function of each entry of one value."""
    (value,) = inputs
    assert isinstance(value, Live)
    name = eqn.primitive.name
    if value.discrete:
        return None
    value = reader.renew(value)
    slope = value.slope * SLOPES.get(name, math.inf)
    return value._replace(
        slope=slope,
        curve=_composed(eqn, [value]),
        unbounded=value.unbounded or reader.text(eqn),
        layer=None,
        channel_axis=None,
    )


def _composed(eqn: Equation, inputs: Sequence[Value]) -> Any:
    """The curve of an operation on curves of one entry and numbers."""
    parts: list[Any] = []
    for value in inputs:
        if isinstance(value, Live):
            if value.curve is None:
                return None
            parts.append(value.curve)
        else:
            number = single_number(value)
            if number is None:
                return None
            parts.append(number)
    bound = eqn.primitive.get_bind_params(_scalar_params(eqn.params))

    def curve(z: jax.Array) -> jax.Array:
        # Curves of half precision are followed in the dtype of the grid.
        values = [
            part(z)
            if callable(part)
            else jnp.asarray(part, z.dtype if _floating(part) else None)
            for part in parts
        ]
        return eqn.primitive.bind(*values, **bound)  # type: ignore[no-any-return]

    return curve


def _floating(value: Any) -> bool:
    return bool(jnp.issubdtype(value.dtype, jnp.floating))


def _scalar_params(params: linalg.Options) -> dict[str, Any]:
    return {
        k: None if k in ("sharding", "out_sharding") else v for k, v in params.items()
    }


def _identity(reader: Reader, eqn: Equation, inputs: list[Value]) -> Any:
    if len(inputs) > 1:
        return list(inputs) if eqn.primitive.multiple_results else None
    (value,) = inputs
    assert isinstance(value, Live)
    floating = jnp.issubdtype(eqn.outvars[0].aval.dtype, jnp.floating)
    if value.discrete and floating:
        if reader.is_token(value):
            # Indices of an input of integers become one-hot vectors.
            return layer_values.fresh(value.shape, 0)
        if value.curve is None:
            return None
        choice = value.curve
        value = value._replace(
            slope=math.inf,
            curve=lambda z: choice(z).astype(z.dtype),
            discrete=False,
            unbounded=reader.text(eqn),
        )
    if not value.discrete and not floating:
        return value._replace(
            discrete=True, slope=math.inf, curve=None, layer=None, channel_axis=None
        )
    return value


def _compared(reader: Reader, eqn: Equation, inputs: list[Value]) -> Live:
    """Comparisons and logic, which are constant almost everywhere."""
    shape = eqn.outvars[0].aval.shape
    inputs = [reader.renew(v) if isinstance(v, Live) else v for v in inputs]
    live = [value for value in inputs if isinstance(value, Live)]
    same = all(layer_values.one_entry(live[0], value) for value in live)
    curve = _composed(eqn, inputs) if same else None
    return Live(shape, live[0].anchor, live[0].entries, math.inf, curve, discrete=True)


def _binary(reader: Reader, eqn: Equation, inputs: list[Value]) -> Live | None:
    """A function of each entry of several values."""
    name, shape = eqn.primitive.name, eqn.outvars[0].aval.shape
    live = [value for value in inputs if isinstance(value, Live)]
    if len(live) == 1 or name not in ("max", "min"):
        inputs = [reader.renew(v) if isinstance(v, Live) else v for v in inputs]
        live = [value for value in inputs if isinstance(value, Live)]
    if not jnp.issubdtype(eqn.outvars[0].aval.dtype, jnp.floating):
        return live[0]._replace(
            shape=shape, discrete=True, slope=math.inf, curve=None, entries=None
        )
    chosen = inputs[1:] if name == "select_n" else inputs
    main = [value for value in chosen if isinstance(value, Live)]
    same = all(layer_values.one_entry(live[0], value) for value in live)
    curve = _composed(eqn, inputs) if same and live[0].shape == shape else None
    slope = _slope_of_join(name, inputs, main)
    if name == "select_n" and isinstance(inputs[0], Live):
        # Only the curve tells whether the function jumps.
        slope = math.inf
    if curve is not None and slope is not None:
        kept = name in _SHIFTS and len(live) == 1
        return live[0]._replace(
            slope=slope,
            curve=curve,
            discrete=False,
            unbounded=live[0].unbounded or reader.text(eqn),
            layer=live[0].layer if kept else None,
            channel_axis=live[0].channel_axis if kept else None,
        )
    jumps = name == "select_n" and isinstance(inputs[0], Live)
    if jumps or any(value.discrete for value in main) or not main:
        return None
    if len(main) == 1:
        return _with_known(reader, eqn, inputs, main[0])
    main = [broadcast(value, shape) for value in main]
    if name in ("max", "min", "select_n", "clamp"):
        return _larger(reader, main, shape)
    if name in _SHIFTS:
        return reader.joined("sum", main, shape)
    return None


def _slope_of_join(
    name: str, inputs: list[Value], live: Sequence[Live]
) -> float | None:
    """The slope of a curve of curves; None if it may not be followed."""
    slopes = [value.slope for value in live if not value.discrete]
    if any(value.discrete for value in live):
        return math.inf
    if name in ("max", "min", "select_n", "clamp"):
        return max(slopes, default=math.inf)
    if name in _SHIFTS:
        return sum(slopes)
    if name in ("mul", "div") and len(live) == 1 and isinstance(inputs[0], Live):
        factor = inputs[1]
        assert isinstance(factor, Known)
        number = single_number(factor)
        if number is None:
            return None
        size = abs(float(number))
        return slopes[0] * (size if name == "mul" else 1 / size if size else math.inf)
    if name == "mul" and len(live) == 1:
        assert isinstance(inputs[0], Known)
        number = single_number(inputs[0])
        return None if number is None else slopes[0] * abs(float(number))
    return math.inf


def _with_known(
    reader: Reader, eqn: Equation, inputs: list[Value], value: Live
) -> Live | None:
    """An operation of one value and known arrays."""
    name, shape = eqn.primitive.name, eqn.outvars[0].aval.shape
    if name in ("max", "min", "select_n", "clamp"):
        gain, node = reader.settle(broadcast(value, shape))
        return layer_values.fresh(shape, node, gain)
    if name in _SHIFTS:
        wide = broadcast(value, shape)
        gain, node = reader.settle(wide)
        return layer_values.fresh(shape, node, gain)._replace(
            layer=value.layer if wide is value else None,
            channel_axis=value.channel_axis if wide is value else None,
        )
    other = inputs[1] if inputs[0] is value else inputs[0]
    assert isinstance(other, Known)
    if name == "mul":
        return reader.scaled(value, other, shape)
    if name == "div" and inputs[0] is value:
        inverse = other._replace(
            value=once(lambda: 1 / other.value()), leaf=None, steps=()
        )
        return reader.scaled(value, inverse, shape)
    return None


def _larger(reader: Reader, live: Sequence[Live], shape: tuple[int, ...]) -> Live:
    """One of several values in each entry."""
    first = live[0]
    finite = all(not math.isinf(value.slope) for value in live)
    if finite and all(value.anchor == first.anchor for value in live):
        return Live(
            shape,
            first.anchor,
            layer_values.united(list(live), shape),
            max(value.slope for value in live),
            None,
        )
    return reader.joined("stack", live, shape)


HANDLERS: dict[str, Handler] = {
    **dict.fromkeys((*SLOPES, *UNBOUNDED), _entrywise),
    **dict.fromkeys(IDENTITIES, _identity),
    **dict.fromkeys(_COMPARISONS, _compared),
    **dict.fromkeys(JOINS, _binary),
    "conv_general_dilated": _convolution,
    "dot_general": _product,
    "gather": _embedding,
}
