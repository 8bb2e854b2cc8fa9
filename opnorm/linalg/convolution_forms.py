"""Forms of a convolution that are faster on a CPU than XLA's.

- oneDNN convolves where it is known to work; see ``opnorm/linalg/onednn.py``.
- The gradient of a kernel, for which XLA uses one core, becomes one matrix product over
  all places of the batch, which uses all cores.
- The input gradient of a convolution with a stride becomes a convolution without one,
  whose output has a channel for each phase of the stride.
- XLA is slow if the output is much larger than the input (the input gradient of a
  convolution without padding) or has few channels (the input gradient of the first
  layer). Such a convolution becomes one matrix product and a sum of shifted results.
- A few groups are convolved one after the other.

``docs/decisions/convolutions_on_cpu.md`` has times.
"""

import math

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend import core as jex_core

from opnorm.linalg import onednn
from opnorm.linalg.types import Options

# With fewer output channels, the fast form does not fill the vector units.
_FEW_CHANNELS = 8
# An output with this many times the places of the input is mostly products with zeros.
_SPREAD = 2
# Up to this many groups are convolved one by one, since the fast form has no groups.
_FEW_GROUPS = 8
_GROUPS = ("feature_group_count", "batch_group_count")
_STEPS = ("window_strides", "lhs_dilation", "rhs_dilation")


def convolve(images: jax.Array, kernel: jax.Array, params: Options) -> jax.Array:
    """Convolves in the form that is fastest on a CPU.

    Args:
      images: (B, ..., C).
      kernel: (..., C / groups, D).
      params: of JAX's primitive for convolutions, for this layout.

    Returns:
      (B, ..., D).
    """
    sizes = _output_sizes(images, kernel, params)
    if _sums_over_places(images, kernel, sizes, params):
        return _product_over_places(images, kernel, sizes, params)
    window = _window(params)
    if window is not None and onednn.supports(images, kernel, window):
        return onednn.convolve(images, kernel, window)
    if _has_phases(images, kernel, sizes, params):
        return _phases_as_channels(images, kernel, sizes, params)
    if _spreads(images, kernel, sizes, params):
        return _product_and_shifts(images, kernel, sizes, params)
    # Either channels or the batch is split; the other count is 1.
    count = max(params[name] for name in _GROUPS)
    if 1 < count <= _FEW_GROUPS:
        axis = -1 if params["feature_group_count"] > 1 else 0
        parts = zip(
            jnp.split(images, count, axis), jnp.split(kernel, count, -1), strict=True
        )
        single = {**params, **dict.fromkeys(_GROUPS, 1)}
        outs = [convolve(*part, single) for part in parts]
        return lax.concatenate(outs, images.ndim - 1)
    convolved: jax.Array = jex_core.primitives.conv_general_dilated_p.bind(
        images, kernel, **params
    )
    return convolved


def _window(params: Options) -> onednn.Window | None:
    """The window of a convolution, if oneDNN may have the kind."""
    if params["batch_group_count"] > 1 or max(params["lhs_dilation"], default=2) > 1:
        return None
    result = params["preferred_element_type"]
    # NumPy takes None for float64 in comparisons.
    if result is not None and result != jnp.float32:
        return None
    return onednn.Window(
        strides=tuple(params["window_strides"]),
        padding=tuple((low, high) for low, high in params["padding"]),
        dilation=tuple(params["rhs_dilation"]),
        groups=params["feature_group_count"],
    )


def _output_sizes(images: jax.Array, kernel: jax.Array, params: Options) -> list[int]:
    """The spatial sizes of the result, for stride 1."""
    return [
        low + high + (size - 1) * spread + 1 - (taps - 1) * step
        for size, taps, (low, high), spread, step in zip(
            images.shape[1:-1],
            kernel.shape[:-2],
            params["padding"],
            params["lhs_dilation"],
            params["rhs_dilation"],
            strict=True,
        )
    ]


def _has_phases(
    images: jax.Array, kernel: jax.Array, sizes: list[int], params: Options
) -> bool:
    """Whether a convolution is the input gradient of one with a stride."""
    if images.ndim != 4 or any(params[name] > 1 for name in _GROUPS):
        return False
    if max(params["lhs_dilation"]) == 1 or min(sizes) < 1:
        return False
    if max(*params["window_strides"], *params["rhs_dilation"]) > 1:
        return False
    # With a 1x1 kernel all phases but one are zero.
    return max(kernel.shape[:2]) > 1


def _phases_as_channels(
    images: jax.Array, kernel: jax.Array, sizes: list[int], params: Options
) -> jax.Array:
    """A convolution of dilated images as one of the images themselves.

    With images dilated by s, place ``s q + r`` of the output meets every s-th tap of
    the kernel. The s phases r become channels of an output with places q.
    """
    dilation, features = params["lhs_dilation"], kernel.shape[-1]
    padding, counts = [], []
    for axis, (spread, (low, _), size) in enumerate(
        zip(dilation, params["padding"], sizes, strict=True)
    ):
        taps, places = kernel.shape[axis], images.shape[1 + axis]
        # Phase r meets image q + offset by tap spread * offset + low - r.
        first, last = -(low // spread), (taps + spread - 2 - low) // spread
        before = spread - 1 - low - spread * first
        width = last - first + 1
        kernel = _padded(kernel, axis, before, spread * width - before - taps)
        counts.append(-(-size // spread))
        padding.append((-first, counts[-1] - places + first + width - 1))
    for axis, (low, high) in enumerate(padding, 1):
        # Images that no place of the output meets are cut off.
        images = _padded(images, axis, min(low, 0), min(high, 0))
    (rows, columns), (up, across) = counts, dilation
    kernel = kernel.reshape(
        -1, up, kernel.shape[1] // across, across, *kernel.shape[2:]
    )
    # Along the axes of length s, the last tap belongs to the first phase.
    kernel = lax.transpose(lax.rev(kernel, (1, 3)), (0, 2, 4, 1, 3, 5))
    kernel = kernel.reshape(*kernel.shape[:3], -1)
    plain = {
        **params,
        "lhs_dilation": (1, 1),
        "padding": tuple((max(low, 0), max(high, 0)) for low, high in padding),
    }
    out = convolve(images, kernel, plain)
    out = out.reshape(-1, rows, columns, up, across, features)
    out = lax.transpose(out, (0, 1, 3, 2, 4, 5))
    out = out.reshape(-1, rows * up, columns * across, features)
    return out[:, : sizes[0], : sizes[1]]


def _spreads(
    images: jax.Array, kernel: jax.Array, sizes: list[int], params: Options
) -> bool:
    """Whether a product and shifts do less work, or run faster, than a convolution."""
    if any(params[name] > 1 for name in _GROUPS):
        return False
    if any(stride > 1 for stride in params["window_strides"]) or min(sizes) < 1:
        return False
    inputs, outputs = kernel.shape[-2:]
    larger = math.prod(sizes) >= _SPREAD * math.prod(images.shape[1:-1])
    return larger or (outputs < _FEW_CHANNELS <= inputs)


def _product_and_shifts(
    images: jax.Array, kernel: jax.Array, sizes: list[int], params: Options
) -> jax.Array:
    """A convolution as one product for all taps, whose parts are shifted and added."""
    spatial = images.ndim - 2
    # The axis that is summed first comes first among the taps. The axes after it count
    # as one, since LLVM takes up to a second to compile a padding among four or more
    # short axes.
    axes = tuple(reversed(range(spatial)))
    kernel = lax.transpose(kernel, (*axes, spatial, spatial + 1))
    contract = (((spatial + 1,), (spatial,)), ((), ()))
    taps = lax.dot_general(
        images,
        kernel,
        contract,
        precision=params["precision"],
        preferred_element_type=params["preferred_element_type"],
    )
    # The parts are added along one axis after the other. These additions are few and
    # simple, and compile several times faster than one sum over all taps.
    for axis, count in zip(axes, kernel.shape, strict=False):
        places = taps.shape[: spatial + 1]
        size = math.prod(taps.shape[spatial + 1 :]) // count
        taps = taps.reshape(*places, count, size)
        total = None
        for place in range(count):
            part = lax.index_in_dim(taps, place, spatial + 1, keepdims=False)
            low = params["padding"][axis][0] - place * params["rhs_dilation"][axis]
            spread = params["lhs_dilation"][axis]
            end = low + (images.shape[1 + axis] - 1) * spread + 1
            config = [(0, 0, 0)] * part.ndim
            config[1 + axis] = (low, sizes[axis] - end, spread - 1)
            part = lax.pad(part, jnp.zeros((), part.dtype), config)
            total = part if total is None else total + part
        assert total is not None
        taps = total
    return taps


def _sums_over_places(
    images: jax.Array, kernel: jax.Array, sizes: list[int], params: Options
) -> bool:
    """Whether a convolution is best computed as one product over places.

    The gradient of a kernel is a convolution whose kernel is as large as the images and
    whose output is as small as the kernel.
    """
    if images.ndim != 4 or images.dtype not in (jnp.float32, jnp.float64):
        return False
    if any(params[name] > 1 for name in _GROUPS):
        return False
    one = all(step == 1 for name in _STEPS for step in params[name])
    if not one or min(sizes) < 1 or math.prod(sizes) >= math.prod(kernel.shape[:2]):
        return False
    # The shifts of few channels cost more than the product saves.
    return min(images.shape[0], kernel.shape[-1]) >= _FEW_CHANNELS


def _product_over_places(
    images: jax.Array, kernel: jax.Array, sizes: list[int], params: Options
) -> jax.Array:
    """A convolution as one matrix product over the batch and all places.

    With columns of the images shifted by every column of the output, and rows of the
    kernel by every row, the two matrices have only as many columns more as the output
    has columns or rows.
    """
    channels, height, _, _ = images.shape
    rows, columns, _, features = kernel.shape
    (top, _), sides = params["padding"]
    # In the terms of the gradient: inputs (B, H, W, C) and cotangents (B, H', W', D).
    inputs = lax.transpose(images, (3, 1, 2, 0))
    cotangents = lax.transpose(kernel, (2, 0, 1, 3))
    inputs = _padded(inputs, 2, *sides)
    left = [inputs[:, :, j : j + columns] for j in range(sizes[1])]
    # Row r of the cotangents meets row r + i - top of the inputs.
    right = [
        _padded(cotangents, 1, i - top, height - rows - i + top)
        for i in range(sizes[0])
    ]
    # XLA is slower with three contracted axes than with one.
    product = lax.dot_general(
        lax.concatenate(left, 3).reshape(-1, sizes[1] * channels),
        lax.concatenate(right, 3).reshape(-1, sizes[0] * features),
        (((0,), (0,)), ((), ())),
        precision=params["precision"],
        preferred_element_type=params["preferred_element_type"],
    )
    product = product.reshape(sizes[1], channels, sizes[0], features)
    return lax.transpose(product, (1, 2, 0, 3))


def _padded(x: jax.Array, axis: int, low: int, high: int) -> jax.Array:
    """Pads one axis with zeros; negative numbers cut places off."""
    config = [(0, 0, 0)] * x.ndim
    config[axis] = (low, high, 0)
    return lax.pad(x, jnp.zeros((), x.dtype), config)
