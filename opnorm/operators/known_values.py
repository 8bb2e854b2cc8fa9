"""Values of a program that do not depend on the input, computed if they are needed."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from opnorm.operators.kernel_forms import Step, Steps
from opnorm.operators.layer_values import Known
from opnorm.operators.slopes import SLOPES, UNBOUNDED

# An operation of a jaxpr. JAX makes its type not public.
Equation = Any
# Operations that change no entry.
IDENTITIES = frozenset(
    {
        *("convert_element_type", "copy", "copy_p", "stop_gradient", "name", "pcast"),
        *("reduce_precision", "sharding_constraint", "mesh_cast", "pvary"),
        *("optimization_barrier", "device_put", "layout_constraint"),
    }
)
# Operations on the entries of several values, place by place.
JOINS = frozenset(
    {
        *("add", "sub", "add_any", "max", "min", "mul", "div", "select_n", "pow"),
        *("clamp", "atan2"),
    }
)


def parameter(array: Any, number: int) -> Known:
    """Returns a parameter, by its position among the sources."""
    varies = tuple(size > 1 for size in array.shape)
    return Known(lambda: array, array.shape, varies, frozenset([number]), number)


def constant(array: Any) -> Known:
    """Returns a value that is no parameter."""
    shape = jnp.shape(array)
    varies = tuple(size > 1 for size in shape)
    return Known(lambda: array, shape, varies, frozenset())


def once(function: Callable[[], jax.Array]) -> Callable[[], jax.Array]:
    """Returns a function that computes its value in the first call."""
    kept: list[jax.Array] = []

    def value() -> jax.Array:
        if not kept:
            kept.append(function())
        return kept[0]

    return value


def evaluated(eqn: Equation, inputs: list[Known]) -> list[Known]:
    """Returns the results of an operation, which are computed if they are needed."""
    outputs: list[list[jax.Array]] = []

    def compute() -> list[jax.Array]:
        if not outputs:
            values = [value.value() for value in inputs]
            bound = eqn.primitive.get_bind_params(eqn.params)
            with eqn.ctx.manager:
                found = eqn.primitive.bind(*values, **bound)
            many = eqn.primitive.multiple_results
            outputs.append(list(found) if many else [found])
        return outputs[0]

    sources = frozenset().union(*(value.sources for value in inputs))
    avals = [var.aval for var in eqn.outvars]

    def result(number: int) -> Known:
        shape = avals[number].shape
        leaf, steps = _moves(eqn, inputs)
        varies = _varies(eqn, inputs, shape)
        return Known(lambda: compute()[number], shape, varies, sources, leaf, steps)

    return [result(number) for number in range(len(avals))]


def _moves(eqn: Equation, inputs: list[Known]) -> tuple[int | None, Steps]:
    """The parameter whose entries an operation moves, and all moves so far."""
    name, first = eqn.primitive.name, inputs[0] if inputs else None
    if first is None or first.leaf is None:
        return None, ()
    step: Step | None
    if name in IDENTITIES and len(inputs) == 1:
        return first.leaf, first.steps
    if name == "transpose":
        step = ("transpose", tuple(eqn.params["permutation"]))
    elif name in ("reshape", "squeeze", "expand_dims"):
        step = ("reshape", tuple(eqn.outvars[0].aval.shape))
    elif name == "rev":
        step = ("flip", tuple(eqn.params["dimensions"]))
    elif name == "broadcast_in_dim" and math.prod(first.shape) == math.prod(
        eqn.outvars[0].aval.shape
    ):
        step = ("reshape", tuple(eqn.outvars[0].aval.shape))
    else:
        return None, ()
    return first.leaf, (*first.steps, step)


def _varies(
    eqn: Equation, inputs: list[Known], shape: tuple[int, ...]
) -> tuple[bool, ...]:
    """For each axis of a result whether its entries may differ along it."""
    name = eqn.primitive.name
    if name == "broadcast_in_dim" and inputs:
        varies = [False] * len(shape)
        for place, axis in enumerate(eqn.params["broadcast_dimensions"]):
            varies[axis] = inputs[0].varies[place]
        return tuple(varies)
    alike = all(len(value.shape) in (0, len(shape)) for value in inputs)
    if alike and inputs and name in (*JOINS, *IDENTITIES, *SLOPES, *UNBOUNDED):
        flags = [value.varies for value in inputs if value.shape]
        return tuple(any(along) for along in zip(*flags, strict=True))
    return tuple(size > 1 for size in shape)


def concrete(value: Known) -> np.ndarray | None:
    """Returns the array of a known value; None if a transformation traces it."""
    array = value.value()
    return None if isinstance(array, jax.core.Tracer) else np.asarray(array)


def single_number(value: Known) -> np.generic | None:
    """Returns the number that all entries of a constant have, if they have one."""
    if any(value.varies) or value.sources:
        return None
    array = concrete(value)
    return None if array is None or not array.size else array.ravel()[0]


def largest(factor: Known) -> float | None:
    """Returns the largest absolute entry; None if a transformation traces the value."""
    array = concrete(factor)
    return None if array is None else float(np.abs(array).max(initial=0.0))


def varying_entries(factor: Known, varies: tuple[bool, ...]) -> jax.Array:
    """Returns the different entries of a factor, ``(C,)``."""
    array = jnp.asarray(factor.value())
    own = varies[len(varies) - array.ndim :]
    return array[tuple(slice(None) if v else 0 for v in own)].reshape(-1)
