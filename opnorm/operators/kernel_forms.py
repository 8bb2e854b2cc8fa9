"""Kernels of operations of JAX in the form of the layers of this library.

A kernel is brought into its form by steps that move its entries. The steps of a
parameter are a part of its layer, so that another value of the parameter gives another
kernel, and a new kernel gives the parameter.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from opnorm import linalg

# A move of entries: ("transpose", permutation), ("reshape", shape), ("flip", axes).
Step = tuple[str, tuple[int, ...]]
Steps = tuple[Step, ...]


class Form(NamedTuple):
    """A linear operation with a kernel, in the form of a layer.

    Attributes:
      kind: as in :class:`opnorm.operators.Layer`.
      steps: moves that make the kernel of the layer from that of the operation.
      input_shape: as in :class:`opnorm.operators.Layer`.
      options: strides, padding, kernel_dilation and groups of a convolution.
      transposed: as in :class:`opnorm.operators.Layer`.
      channel_axis: axis of the output of the operation that counts the last axis of
        the kernel; None if there is no such axis.
    """

    kind: str
    steps: Steps
    input_shape: tuple[int, ...]
    options: linalg.Options
    transposed: bool = False
    channel_axis: int | None = None


def apply_steps(array: jax.Array, steps: Steps) -> jax.Array:
    """Moves the entries of an array."""
    for name, numbers in steps:
        if name == "transpose":
            array = jnp.transpose(array, numbers)
        elif name == "reshape":
            array = jnp.reshape(array, numbers)
        else:
            array = jnp.flip(array, numbers)
    return array


def undo_steps(array: jax.Array, steps: Steps, shape: Sequence[int]) -> jax.Array:
    """Moves the entries of a kernel back to a parameter of the given shape."""
    zeros = jnp.zeros(tuple(shape), array.dtype)
    moved = jax.linear_transpose(lambda parameter: apply_steps(parameter, steps), zeros)
    parameter: jax.Array = moved(array)[0]
    return parameter


def convolution_form(
    image: tuple[int, ...], kernel: tuple[int, ...], params: linalg.Options, batch: int
) -> Form | None:
    """Returns the form of ``lax.conv_general_dilated`` with a known kernel.

    Args:
      image: shape of the left operand.
      kernel: shape of the right operand.
      params: parameters of the operation.
      batch: number of examples.

    Returns:
      None for an operation that is no convolution of this library nor the transpose of
      one: with groups of the batch, or with strides and a dilated input at once.
    """
    images_at, kernel_at, result_at = params["dimension_numbers"]
    rank = len(image) - 2
    copies, rest = divmod(image[images_at[0]], batch)
    if params["batch_group_count"] != 1 or rest or not 1 <= rank <= 3:
        return None
    sizes = [image[axis] for axis in images_at[2:]]
    taps = [kernel[axis] for axis in kernel_at[2:]]
    strides, dilation = tuple(params["window_strides"]), tuple(params["rhs_dilation"])
    padding = tuple((int(low), int(high)) for low, high in params["padding"])
    groups = params["feature_group_count"]
    channels = image[images_at[1]]
    inputs, outputs = kernel[kernel_at[1]], kernel[kernel_at[0]]
    steps: list[Step] = [("transpose", (*kernel_at[2:], kernel_at[1], kernel_at[0]))]
    spread = tuple(params["lhs_dilation"])
    transposed = max(spread) > 1
    if transposed:
        if max(strides) > 1:
            return None
        # The adjoint correlates with the flipped kernel and takes steps of the spread.
        reach = [(n - 1) * step for n, step in zip(taps, dilation, strict=True)]
        sizes = [
            (size - 1) * gap + 1 + low + high - extent
            for size, gap, (low, high), extent in zip(
                sizes, spread, padding, reach, strict=True
            )
        ]
        padding = tuple(
            (extent - low, extent - high)
            for extent, (low, high) in zip(reach, padding, strict=True)
        )
        strides, channels = spread, outputs
        each = outputs // groups
        steps += [
            ("flip", tuple(range(rank))),
            ("reshape", (*taps, inputs, groups, each)),
            ("transpose", (*range(rank), rank + 2, rank + 1, rank)),
            ("reshape", (*taps, each, groups * inputs)),
        ]
    if copies > 1:
        # Several images of one example are places along one more axis.
        if rank == 3:
            return None
        shape = [kernel[axis] for axis in kernel_at[1::-1]]
        shape = [each, groups * inputs] if transposed else shape
        steps.append(("reshape", (1, *taps, *shape)))
        sizes, strides, dilation = [copies, *sizes], (1, *strides), (1, *dilation)
        padding = ((0, 0), *padding)
    options = {
        "strides": strides,
        "padding": padding,
        "kernel_dilation": dilation,
        "groups": groups,
    }
    return Form(
        "convolution",
        tuple(steps),
        (*sizes, channels),
        options,
        transposed,
        None if transposed else result_at[1],
    )


def product_form(
    value: tuple[int, ...],
    kernel: tuple[int, ...],
    dimensions: tuple[Any, Any],
    batch: int,
    *,
    kernel_first: bool,
) -> Form | None:
    """Returns the form of ``lax.dot_general`` with a known operand.

    Args:
      value: shape of the operand that depends on the input.
      kernel: shape of the known operand.
      dimensions: ``((contracted of value, of kernel), (batched of value, of kernel))``.
      batch: number of examples.
      kernel_first: whether the known operand is the left one.

    Returns:
      A dense layer; a convolution with one tap and groups for a product with batch
      axes, which has a matrix of its own at each place of them. None if the examples
      do not lie along an axis that is free.
    """
    (contracted, kernel_contracted), (batched, kernel_batched) = dimensions
    free = [
        n for n in range(len(kernel)) if n not in (*kernel_contracted, *kernel_batched)
    ]
    inputs = math.prod(kernel[n] for n in kernel_contracted)
    outputs = math.prod(kernel[n] for n in free)
    groups = math.prod(kernel[n] for n in kernel_batched)
    places_at = [n for n in range(len(value)) if n not in (*contracted, *batched)]
    places = _without_batch([value[n] for n in places_at], batch)
    if places is None:
        return None
    order = ("transpose", (*kernel_contracted, *kernel_batched, *free))
    if kernel_batched:
        blocks: Steps = (order, ("reshape", (1, inputs, groups * outputs)))
        options = {
            "strides": (1,),
            "padding": ((0, 0),),
            "kernel_dilation": (1,),
            "groups": groups,
        }
        shape = (math.prod(places), groups * inputs)
        return Form("convolution", blocks, shape, options)
    steps: Steps = (order, ("reshape", (inputs, outputs)))
    axis = len(batched) + (0 if kernel_first else len(places_at))
    channel_axis = axis if len(free) == 1 else None
    return Form("dense", steps, (*places, inputs), {}, False, channel_axis)


def scale_shape(
    value: tuple[int, ...], varies: Sequence[bool], batch: int
) -> tuple[int, ...] | None:
    """Returns the shape ``(*places, C)`` of the input of a layer of C factors.

    Args:
      value: shape of the value that is multiplied.
      varies: whether the factors differ along each axis.
      batch: number of examples.

    Returns:
      None if the examples do not lie along an axis without different factors.
    """
    rest = [n for n, differs in zip(value, varies, strict=True) if not differs]
    places = _without_batch(rest, batch)
    if places is None:
        return None
    factors = math.prod(n for n, differs in zip(value, varies, strict=True) if differs)
    return (*places, factors)


def minimal_steps(shape: Sequence[int], steps: Steps) -> Steps:
    """Returns the steps without those that change nothing."""
    kept: list[Step] = []
    current = tuple(shape)
    for name, numbers in steps:
        if name == "transpose":
            idle = numbers == tuple(range(len(current)))
            following = tuple(current[n] for n in numbers)
        elif name == "reshape":
            idle, following = numbers == current, numbers
        else:
            idle, following = not numbers, current
        if not idle:
            kept.append((name, numbers))
        current = following
    return tuple(kept)


def _without_batch(sizes: list[int], batch: int) -> tuple[int, ...] | None:
    """The sizes without the axis of the examples."""
    if batch in sizes:
        place = sizes.index(batch)
        return tuple(sizes[:place] + sizes[place + 1 :])
    count, rest = divmod(math.prod(sizes), batch)
    return None if rest else (count,)
