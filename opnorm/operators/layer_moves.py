"""Operations that move, copy, leave out or reduce entries."""

import math
from collections.abc import Callable

import numpy as np

from opnorm.operators import layer_values
from opnorm.operators.known_values import Equation
from opnorm.operators.layer_reader import Handler, Reader
from opnorm.operators.layer_values import Known, Live, Value


def _move(move: Callable[[Equation, np.ndarray], np.ndarray]) -> Handler:
    """Returns the handler of an operation that moves, copies or leaves out entries."""

    def handler(reader: Reader, eqn: Equation, inputs: list[Value]) -> Live | None:
        value = inputs[0]
        if isinstance(value, Known):
            return None
        name, shape = eqn.primitive.name, eqn.outvars[0].aval.shape
        in_order = value.entries is None and name not in ("transpose", "rev")
        if in_order and math.prod(shape) == math.prod(value.shape):
            axis = _axis_after(value, shape)
            return value._replace(
                shape=shape,
                layer=value.layer if axis is not None else None,
                channel_axis=axis,
            )
        found = layer_values.moved(value, lambda index: move(eqn, index))
        if name == "transpose" and value.channel_axis is not None:
            axis = eqn.params["permutation"].index(value.channel_axis)
            return found._replace(layer=value.layer, channel_axis=axis)
        return found

    return handler


def _axis_after(value: Live, shape: tuple[int, ...]) -> int | None:
    """The place of the axis of channels after a reshape."""
    axis = value.channel_axis
    if axis is None:
        return None
    before, size = math.prod(value.shape[:axis]), value.shape[axis]
    for place, length in enumerate(shape):
        if length == size and math.prod(shape[:place]) == before:
            return place
    return None


def _slice(eqn: Equation, index: np.ndarray) -> np.ndarray:
    params = eqn.params
    strides = params["strides"] or (1,) * index.ndim
    return index[
        tuple(
            slice(start, stop, step)
            for start, stop, step in zip(
                params["start_indices"], params["limit_indices"], strides, strict=True
            )
        )
    ]


def _spread(eqn: Equation, index: np.ndarray) -> np.ndarray:
    shape = eqn.outvars[0].aval.shape
    wide = [1] * len(shape)
    for place, axis in enumerate(eqn.params["broadcast_dimensions"]):
        wide[axis] = index.shape[place]
    return np.broadcast_to(index.reshape(wide), shape)


def _padded(eqn: Equation, index: np.ndarray) -> np.ndarray:
    found = np.full(eqn.outvars[0].aval.shape, -1, index.dtype)
    source, target = [], []
    for size, length, (low, _, inner) in zip(
        index.shape, found.shape, eqn.params["padding_config"], strict=True
    ):
        places = low + np.arange(size) * (inner + 1)
        inside = (places >= 0) & (places < length)
        source.append(np.flatnonzero(inside))
        target.append(places[inside])
    found[np.ix_(*target)] = index[np.ix_(*source)]
    return found


def _pad(reader: Reader, eqn: Equation, inputs: list[Value]) -> Live | None:
    value, filler = inputs
    if isinstance(value, Known) or isinstance(filler, Live):
        return None
    # The filler is no value of a curve, so the result is an anchor of its own.
    gain, node = reader.settle(
        layer_values.moved(value, lambda index: _padded(eqn, index))
    )
    return layer_values.fresh(eqn.outvars[0].aval.shape, node, gain)


def _dynamic_slice(reader: Reader, eqn: Equation, inputs: list[Value]) -> Live | None:
    value, starts = inputs[0], inputs[1:]
    if isinstance(value, Known) or any(isinstance(start, Live) for start in starts):
        return None
    gain, node = reader.settle(value)
    return layer_values.fresh(eqn.outvars[0].aval.shape, node, gain)


def _split(reader: Reader, eqn: Equation, inputs: list[Value]) -> list[Value] | None:
    (value,) = inputs
    assert isinstance(value, Live)
    axis, sizes = eqn.params["axis"], eqn.params["sizes"]
    ends = np.cumsum(sizes)[:-1]

    def part(number: int) -> Live:
        return layer_values.moved(
            value, lambda index: np.split(index, ends, axis)[number]
        )

    return [part(number) for number in range(len(sizes))]


def _concatenate(reader: Reader, eqn: Equation, inputs: list[Value]) -> Live | None:
    live = [value for value in inputs if isinstance(value, Live)]
    if any(value.discrete for value in live):
        return None
    return reader.concatenated(inputs, eqn.params["dimension"])


def _reduction(gain_of: Callable[[Equation, Live], float | None]) -> Handler:
    """Returns the handler of an operation that reduces entries, with its gain."""

    def handler(reader: Reader, eqn: Equation, inputs: list[Value]) -> Live | None:
        value = inputs[0]
        if isinstance(value, Known) or len(inputs) > 1 or value.discrete:
            return None
        own = gain_of(eqn, value)
        if own is None:
            return None
        gain, node = reader.settle(value)
        return layer_values.fresh(eqn.outvars[0].aval.shape, node, own * gain)

    return handler


def _sum_gain(eqn: Equation, value: Live) -> float:
    return math.sqrt(math.prod(value.shape[axis] for axis in eqn.params["axes"]))


def _running_sum_gain(eqn: Equation, value: Live) -> float:
    size = value.shape[eqn.params["axis"]]
    return math.sqrt(size * (size + 1) / 2)


def _overlap(eqn: Equation) -> int | None:
    """The largest number of windows that an entry lies in."""
    params = eqn.params
    if max(params["base_dilation"], default=1) > 1:
        return None
    dense = max(params["window_dilation"], default=1) == 1
    places: int = math.prod(
        -(-size // stride) if dense else size
        for size, stride in zip(
            params["window_dimensions"], params["window_strides"], strict=True
        )
    )
    return places


def _window_maximum_gain(eqn: Equation, value: Live) -> float | None:
    overlap = _overlap(eqn)
    return None if overlap is None else math.sqrt(overlap)


def _window_sum_gain(eqn: Equation, value: Live) -> float | None:
    overlap = _overlap(eqn)
    window = math.prod(eqn.params["window_dimensions"])
    # The norm is at most the root of the largest sums of a row and of a column.
    return None if overlap is None else math.sqrt(overlap * window)


def _sort_gain(eqn: Equation, value: Live) -> float | None:
    return 1.0 if len(eqn.outvars) == 1 else None


HANDLERS: dict[str, Handler] = {
    "slice": _move(_slice),
    "reshape": _move(lambda eqn, index: index.reshape(eqn.outvars[0].aval.shape)),
    "squeeze": _move(lambda eqn, index: index.reshape(eqn.outvars[0].aval.shape)),
    "expand_dims": _move(lambda eqn, index: index.reshape(eqn.outvars[0].aval.shape)),
    "transpose": _move(lambda eqn, index: index.transpose(eqn.params["permutation"])),
    "rev": _move(lambda eqn, index: np.flip(index, eqn.params["dimensions"])),
    "broadcast_in_dim": _move(_spread),
    "pad": _pad,
    "dynamic_slice": _dynamic_slice,
    "split": _split,
    "concatenate": _concatenate,
    "reduce_sum": _reduction(_sum_gain),
    "cumsum": _reduction(_running_sum_gain),
    "reduce_max": _reduction(lambda eqn, value: 1.0),
    "reduce_min": _reduction(lambda eqn, value: 1.0),
    "reduce_window_max": _reduction(_window_maximum_gain),
    "reduce_window_min": _reduction(_window_maximum_gain),
    "reduce_window_sum": _reduction(_window_sum_gain),
    "sort": _reduction(_sort_gain),
}
