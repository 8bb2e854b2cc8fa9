"""Layers that the convolutional networks share.

Functions that build a Flax layer are called inside a compact module and name the layer,
so that parameter trees depend on the names alone.
"""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from opnorm.models import initializers
from opnorm.models import outputs as outputs_lib


def batch_norm(
    name: str,
    *,
    train: bool,
    dtype: DTypeLike,
    affine: bool = True,
    scale_init: Callable[..., jax.Array] = nn.initializers.ones,
) -> nn.BatchNorm:
    """Builds BatchNorm with epsilon 1e-5 and momentum 0.9 (PyTorch's 0.1).

    Args:
      name: name of the module.
      train: if true, the layer uses the statistics of the batch and updates the running
        ones.
      dtype: dtype of the computation; statistics, scale and shift are at least float32.
      affine: if true, the layer has a learned scale and shift.
      scale_init: initialises the scale.
    """
    param_dtype = outputs_lib.parameter_dtype(dtype)
    return nn.BatchNorm(
        use_running_average=not train,
        momentum=0.9,
        epsilon=1e-5,
        use_bias=affine,
        use_scale=affine,
        scale_init=scale_init,
        # A variance in one pass loses digits by cancellation, but fewer than half
        # precision has lost already. It saves one of the passes over a GPU's memory,
        # which bound the time of a step of ResNet-50.
        use_fast_variance=jnp.dtype(dtype).itemsize < 4,
        dtype=dtype,
        param_dtype=param_dtype,
        # Flax would start float64 statistics as float32 and change their dtype with
        # the first update.
        force_float32_reductions=param_dtype == jnp.float32,
        name=name,
    )


def convolution(
    name: str,
    channels: int,
    size: int,
    *,
    kernel_init: Callable[..., jax.Array],
    dtype: DTypeLike,
    stride: int = 1,
    groups: int = 1,
    padding: str = "symmetric",
) -> nn.Conv:
    """Builds a convolution without bias.

    The padding "symmetric", PyTorch's, adds ``size // 2`` places on every side; "same",
    TensorFlow's, pads an even image by one place less on top and left where the stride
    is 2.

    Args:
      name: name of the module.
      channels: number of output channels.
      size: height and width of the kernel, odd.
      kernel_init: initialises the kernel.
      dtype: dtype of the computation; the kernel is at least float32.
      stride: stride in both directions.
      groups: number of groups of channels.
      padding: "symmetric" or "same".
    """
    return nn.Conv(
        channels,
        (size, size),
        strides=stride,
        padding=size // 2 if padding == "symmetric" else "SAME",
        feature_group_count=groups,
        use_bias=False,
        kernel_init=kernel_init,
        dtype=dtype,
        param_dtype=outputs_lib.parameter_dtype(dtype),
        name=name,
    )


def biased_convolution(
    name: str,
    channels: int,
    size: int,
    *,
    dtype: DTypeLike,
    stride: int = 1,
    padding: str = "SAME",
    kernel_init: Callable[..., jax.Array] = initializers.XAVIER_UNIFORM,
) -> nn.Conv:
    """Builds a convolution with a bias that starts from zero and TensorFlow's padding.

    Args:
      name: name of the module.
      channels: number of output channels.
      size: height and width of the kernel.
      dtype: dtype of the computation; kernel and bias are at least float32.
      stride: stride in both directions.
      padding: "SAME", which adds an odd place below and to the right, or "VALID", which
        adds none.
      kernel_init: initialises the kernel.
    """
    return nn.Conv(
        channels,
        (size, size),
        strides=stride,
        padding=padding,
        kernel_init=kernel_init,
        dtype=dtype,
        param_dtype=outputs_lib.parameter_dtype(dtype),
        name=name,
    )


def linear(
    features: jax.Array,
    num_classes: int,
    dtype: DTypeLike,
    *,
    kernel_init: Callable[..., jax.Array] = initializers.LECUN_NORMAL,
    use_bias: bool = True,
) -> jax.Array:
    """Computes logits by the linear layer "logits", whose bias starts from zero.

    Args:
      features: (B, F).
      num_classes: number of logits.
      dtype: dtype of the computation.
      kernel_init: initialises the kernel.
      use_bias: if true, the layer has a bias.

    Returns:
      (B, num_classes), at least float32.
    """
    param_dtype = outputs_lib.parameter_dtype(dtype)
    return nn.Dense(
        num_classes,
        dtype=dtype,
        param_dtype=param_dtype,
        kernel_init=kernel_init,
        use_bias=use_bias,
        name="logits",
    )(features).astype(param_dtype)


@jax.custom_jvp
def max_pool(x: jax.Array) -> jax.Array:
    """Computes 2x2 max-pooling with stride 2; an odd last row or column is dropped.

    Derivatives go to one entry of each window, also where several are the largest.

    Args:
      x: (B, H, W, C), H and W at least 2.

    Returns:
      (B, H // 2, W // 2, C), like ``x``.
    """
    # The backward pass is several times faster on CPU than that of reduce_window.
    windows = _windows(x)
    rows = jnp.maximum(windows[:, :, 0], windows[:, :, 1])
    return jnp.maximum(rows[:, :, :, 0], rows[:, :, :, 1])


@max_pool.defjvp
def _max_pool_jvp(
    primals: tuple[jax.Array], tangents: tuple[jax.Array]
) -> tuple[jax.Array, jax.Array]:
    # The transposed sum over a mask is one selection. The transposed choice between
    # slices is six paddings and their sums, which take XLA twice as long to compile.
    (x,), (tangent,) = primals, tangents
    windows = _windows(x)
    upper = windows[:, :, 0] >= windows[:, :, 1]
    rows = jnp.maximum(windows[:, :, 0], windows[:, :, 1])
    left = rows[:, :, :, 0] >= rows[:, :, :, 1]
    in_upper = jnp.array([True, False]).reshape(1, 1, 2, 1, 1, 1)
    in_left = jnp.array([True, False]).reshape(1, 1, 1, 1, 2, 1)
    chosen = (upper[:, :, None] == in_upper) & (left[:, :, None, :, None] == in_left)
    kept = jnp.where(chosen, _windows(tangent), 0)
    pooled = jnp.maximum(rows[:, :, :, 0], rows[:, :, :, 1])
    return pooled, jnp.sum(kept, axis=(2, 4))


def average_pool(x: jax.Array) -> jax.Array:
    """Computes 2x2 averages with stride 2; an odd last row or column is dropped.

    Args:
      x: (B, H, W, C), H and W at least 2.

    Returns:
      (B, H // 2, W // 2, C), like ``x``.
    """
    return jnp.mean(_windows(x), axis=(2, 4))


def overlapping_max_pool(x: jax.Array, *, padding: int | str = 1) -> jax.Array:
    """Computes 3x3 max-pooling with stride 2.

    Derivatives go to one entry of each window, also where several are the largest.

    One entry can be the largest of four windows, so the l2 Lipschitz constant is 2;
    that of pooling without overlap is 1.

    Args:
      x: (B, H, W, C).
      padding: 1 for a border of one place on every side, as in PyTorch's networks;
        "SAME", TensorFlow's: where H is even, none on top and 1 below, and likewise for
        W; or "VALID" for none: H and W are at least 3, and where they are even the last
        row or column is dropped. The border is -inf.

    Returns:
      (B, (H + 1) // 2, (W + 1) // 2, C), with "VALID" (B, (H - 1) // 2, (W - 1) // 2,
      C); like ``x``.
    """
    # The backward pass is 11 times faster on CPU than that of reduce_window, and 6
    # times under vmap.
    return _pool_axis(_pool_axis(x, 1, padding), 2, padding)


def local_average(x: jax.Array, size: int) -> jax.Array:
    """Computes averages over size x size windows with stride 1 around every place.

    The part of a window that lies outside of the image counts neither in the sum nor in
    the number that divides it, as in TensorFlow's average-pooling with SAME.

    Args:
      x: (B, H, W, C).
      size: height and width of the window, odd.

    Returns:
      Like ``x``; sums are accumulated in at least float32.
    """

    def averages(places: int) -> jax.Array:
        distances = np.abs(np.subtract.outer(np.arange(places), np.arange(places)))
        inside = distances <= size // 2
        return jnp.asarray(inside / inside.sum(axis=1, keepdims=True), wide)

    # Windows and their sizes are products of those of the two axes. With derivatives
    # this takes half the time of reduce_window on CPU.
    wide = outputs_lib.parameter_dtype(x.dtype)
    rows, columns = averages(x.shape[1]), averages(x.shape[2])
    h = jnp.einsum("ih,bhwc->biwc", rows, x.astype(wide), precision="highest")
    h = jnp.einsum("jw,biwc->bijc", columns, h, precision="highest")
    return h.astype(x.dtype)


def local_response_normalization(
    x: jax.Array,
    *,
    depth_radius: int = 4,
    bias: float = 1.0,
    alpha: float = 0.001 / 9,
    beta: float = 0.75,
) -> jax.Array:
    """Divides entries by a power of the sum of squares over neighbouring channels.

    At each place::

        y_c = x_c / (bias + alpha sum_{|k - c| <= depth_radius} x_k^2)^beta

    where channels that do not exist count as zero. (PyTorch divides its alpha by the
    number of channels in the window.) The base is at least ``bias``, so the function is
    smooth everywhere. With bias 1 its Jacobian is the identity at 0; gradient ascent
    found no Jacobian of a larger norm.

    Args:
      x: (..., C), floating.
      depth_radius: r, channels on either side; the window has 2 r + 1 channels.
      bias: positive.
      alpha: at least 0.
      beta: the exponent.

    Returns:
      An array like ``x``; computed in at least float32, since squares overflow in half
      precision.

    Source: Krizhevsky et al. 2012, Section 3.3, in the form of TensorFlow's function of
    this name; the defaults are those of the AlexNet in the code of Farnia et al. 2019.
    """
    wide = x.astype(outputs_lib.parameter_dtype(x.dtype))
    ones = (1,) * (x.ndim - 1)
    # The backward pass is up to 15 times faster on CPU than that of a sum of slices.
    squares = jax.lax.reduce_window(
        wide * wide,
        0.0,
        jax.lax.add,
        window_dimensions=(*ones, 2 * depth_radius + 1),
        window_strides=(*ones, 1),
        padding=[(0, 0)] * len(ones) + [(depth_radius, depth_radius)],
    )
    scale: jax.Array = (bias + alpha * squares) ** -beta
    return (wide * scale).astype(x.dtype)


def _windows(x: jax.Array) -> jax.Array:
    """2x2 windows, (B, H // 2, 2, W // 2, 2, C): without overlap, a reshape."""
    batch, height, width, channels = x.shape
    x = x[:, : height // 2 * 2, : width // 2 * 2]
    return x.reshape(batch, height // 2, 2, width // 2, 2, channels)


def _pool_axis(x: jax.Array, axis: int, padding: int | str) -> jax.Array:
    """Maxima over every second three neighbouring places of one axis."""
    odd = x.shape[axis] % 2
    # Places that no window reads are not padded.
    widths = [(0, 0)] * x.ndim
    widths[axis] = {1: (1, odd), "SAME": (odd, 1), "VALID": (0, 0)}[padding]
    x = jnp.pad(x, widths, constant_values=-jnp.inf)
    places = 2 * ((x.shape[axis] - 1) // 2)
    first, middle, last = (
        jax.lax.slice_in_dim(x, start, start + places - 1, 2, axis)
        for start in range(3)
    )
    return _larger(_larger(first, middle), last)


@jax.custom_jvp
def _larger(a: jax.Array, b: jax.Array) -> jax.Array:
    """The maximum, with a derivative that takes one side where both are equal."""
    return jnp.maximum(a, b)


@_larger.defjvp
def _larger_jvp(
    primals: tuple[jax.Array, jax.Array], tangents: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array, jax.Array]:
    # The derivatives of jnp.maximum need four times the memory of a comparison.
    a, b = primals
    return _larger(a, b), jnp.where(a >= b, *tangents)
