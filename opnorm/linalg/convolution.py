"""Convolutions as linear maps on one image, and norms of their kernels."""

import math
from collections.abc import Sequence
from typing import NamedTuple, TypeGuard

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from opnorm.linalg.dtypes import at_least_single
from opnorm.linalg.linear_map import LinearMap, varying_axes
from opnorm.linalg.norms import norm

Padding = str | Sequence[tuple[int, int]]

PADDINGS = ("SAME", "VALID", "CIRCULAR")


class Geometry(NamedTuple):
    """The options of a convolution and the shapes of its kernel and of the image.

    Tuples have one entry for each spatial axis.

    Attributes:
      sizes: spatial sizes of the image.
      kernel_sizes: number of taps along each axis, before dilation.
      strides: steps of the window, in places.
      dilation: distances between neighbouring taps, in places.
      padding: numbers of places added before and after the image.
      periodic: whether the added places repeat the other end of the image instead of
        zeros.
      groups: number of independent convolutions that the channels are split into.
      in_channels: channels of the image.
      out_channels: channels of the result.
    """

    sizes: tuple[int, ...]
    kernel_sizes: tuple[int, ...]
    strides: tuple[int, ...]
    dilation: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    periodic: bool
    groups: int
    in_channels: int
    out_channels: int

    @property
    def in_shape(self) -> tuple[int, ...]:
        """The shape of the image, channels last."""
        return (*self.sizes, self.in_channels)

    @property
    def out_shape(self) -> tuple[int, ...]:
        """The shape of the result, channels last."""
        sizes = [
            (size + low + high - extent) // stride + 1
            for size, (low, high), extent, stride in zip(
                self.sizes, self.padding, self.extents, self.strides, strict=True
            )
        ]
        return (*sizes, self.out_channels)

    @property
    def extents(self) -> tuple[int, ...]:
        """The number of places that the dilated kernel spans."""
        return tuple(
            (taps - 1) * step + 1
            for taps, step in zip(self.kernel_sizes, self.dilation, strict=True)
        )


def geometry(
    kernel: jax.Array,
    input_shape: Sequence[int],
    strides: int | Sequence[int],
    padding: Padding,
    kernel_dilation: int | Sequence[int],
    groups: int,
) -> Geometry:
    """Checks and completes the options that all functions of convolutions share."""
    if kernel.ndim not in (3, 4, 5) or not jnp.issubdtype(kernel.dtype, jnp.floating):
        raise ValueError(
            f"kernel has shape {kernel.shape} and dtype {kernel.dtype}; it must be "
            "floating, (*spatial, C_in / groups, C_out) with 1 to 3 spatial axes."
        )
    if 0 in kernel.shape:
        raise ValueError(f"kernel has shape {kernel.shape}; it must not be empty.")
    rank = kernel.ndim - 2
    *sizes, channels = _positive_ints("input_shape", input_shape, rank + 1)
    (groups,) = _positive_ints("groups", groups, 1)
    inputs, outputs = kernel.shape[-2:]
    if channels != groups * inputs or outputs % groups:
        raise ValueError(
            f"kernel has shape {kernel.shape} and groups is {groups}, for input_shape "
            f"{tuple(input_shape)}; the image must have groups times the kernel's "
            f"{inputs} input channels, and groups must divide its {outputs} outputs."
        )
    found = Geometry(
        tuple(sizes),
        kernel.shape[:-2],
        _positive_ints("strides", strides, rank),
        _positive_ints("kernel_dilation", kernel_dilation, rank),
        ((0, 0),) * rank,
        padding == "CIRCULAR",
        groups,
        channels,
        outputs,
    )
    found = found._replace(padding=_pads(padding, found))
    if min(found.out_shape) < 1:
        raise ValueError(
            f"input_shape is {tuple(input_shape)}; with padding {found.padding} it is "
            f"smaller than the dilated kernel, {found.extents}."
        )
    return found


def convolution_map(
    kernel: jax.Array,
    input_shape: Sequence[int],
    *,
    strides: int | Sequence[int] = 1,
    padding: Padding = "SAME",
    kernel_dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> LinearMap:
    """Returns a convolution, without its bias, as a linear map on one image.

    The map is the operation of ``flax.linen.Conv``, a correlation:

        y[o] = sum_t K[t] x[o * strides + t * kernel_dilation - low].

    Args:
      kernel: ``(*spatial, C_in / groups, C_out)`` float, 1 to 3 spatial axes.
      input_shape: ``(*spatial, C_in)``, the shape of the image.
      strides: steps of the window, in places: one number for all axes, or one for each.
      padding: "SAME", "VALID", "CIRCULAR" (as many places as "SAME" with stride 1, with
        values from the other end of the image), or one pair per axis with the numbers
        of zeros added before and after. Negative numbers crop.
      kernel_dilation: distances between neighbouring taps, in places: one number for
        all axes, or one for each.
      groups: number of independent convolutions that the channels are split into.

    Returns:
      A map with a batch of one, in the kernel's dtype.

    Raises:
      ValueError: for an argument of a wrong shape, dtype or range.
    """
    where = geometry(kernel, input_shape, strides, padding, kernel_dilation, groups)
    return as_map(kernel, where)


def as_map(kernel: jax.Array, where: Geometry) -> LinearMap:
    """Returns the map of a kernel in a geometry that was checked before."""

    def matvec(v: jax.Array) -> jax.Array:
        return _convolve(linear_map.spread(v), kernel, where)

    def rmatvec(u: jax.Array) -> jax.Array:
        image = jnp.zeros((1, *where.in_shape), kernel.dtype)
        transposed = jax.linear_transpose(matvec, linear_map.spread(image))
        pulled: jax.Array = transposed(linear_map.spread(u))[0]
        return pulled

    linear_map = LinearMap(
        matvec,
        rmatvec,
        1,
        where.in_shape,
        where.out_shape,
        kernel.dtype,
        varying_axes(kernel),
    )
    return linear_map


def convolution_frobenius_norm(
    kernel: jax.Array,
    input_shape: Sequence[int],
    *,
    strides: int | Sequence[int] = 1,
    padding: Padding = "SAME",
    kernel_dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> jax.Array:
    """Computes the Frobenius norm of a convolution as a linear map.

        ||A||_F^2 = sum_t n_t ||K[t]||_F^2,

    where n_t is the number of windows in which tap t lies on the image. Taps that fall
    on one place of a periodic image are added first. The Frobenius norm of the kernel
    is another number, since it counts one window.

    Args:
      kernel: ``(*spatial, C_in / groups, C_out)`` float, 1 to 3 spatial axes.
      input_shape: ``(*spatial, C_in)``, the shape of the image.
      strides: as in :func:`convolution_map`.
      padding: as in :func:`convolution_map`.
      kernel_dilation: as in :func:`convolution_map`.
      groups: as in :func:`convolution_map`.

    Returns:
      A scalar, at least float32.

    Raises:
      ValueError: as :func:`convolution_map`.
    """
    where = geometry(kernel, input_shape, strides, padding, kernel_dilation, groups)
    scaled, size = scale(kernel)
    counts = np.ones(())
    for axis, windows in enumerate(where.out_shape[:-1]):
        taps = where.dilation[axis] * np.arange(where.kernel_sizes[axis])
        length = where.sizes[axis]
        if where.periodic:
            # Taps that fall on the same place of the image act as their sum.
            folded = (*scaled.shape[:axis], length, *scaled.shape[axis + 1 :])
            index = (slice(None),) * axis + (taps % length,)
            scaled = jnp.zeros(folded, scaled.dtype).at[index].add(scaled)
            along = np.full(length, windows)
        else:
            starts = np.arange(windows) * where.strides[axis] - where.padding[axis][0]
            places = starts + taps[:, None]
            along = ((places >= 0) & (places < length)).sum(axis=1)
        counts = np.multiply.outer(counts, along)
    weights = jnp.asarray(np.sqrt(counts), scaled.dtype)[..., None, None]
    return size * norm((weights * scaled)[None], 2.0)[0]


def kernel_matrix_singular_values(kernel: jax.Array) -> jax.Array:
    """Computes the singular values of the kernel matrix, ``C_out x (taps C_in)``.

    Args:
      kernel: ``(..., C_out)`` float, the kernel of a convolution or of a dense layer.

    Returns:
      ``(min(C_out, taps C_in / groups),)``, largest first, at least float32.

    Raises:
      ValueError: for fewer than 2 axes, an empty kernel or a dtype that is not float.
    """
    floating = jnp.issubdtype(kernel.dtype, jnp.floating)
    if kernel.ndim < 2 or 0 in kernel.shape or not floating:
        raise ValueError(
            f"kernel has shape {kernel.shape} and dtype {kernel.dtype}; it must be "
            "floating, with at least 2 axes and not empty."
        )
    scaled, size = scale(kernel)
    matrix = scaled.reshape(-1, kernel.shape[-1])
    return size * jnp.linalg.svd(matrix, compute_uv=False)


def kernel_matrix_norm(kernel: jax.Array) -> jax.Array:
    """Computes the spectral norm of the kernel matrix, as spectral normalisation does.

    It is **no bound of the norm of the convolution**: on trained kernels it is 0.55 to
    0.96 of that norm. Without dilation, the norm of the convolution is at most
    ``sqrt(prod ceil(kernel size / stride))`` times as large. Without groups, it is at
    least as large if some window lies inside the image. The matrix ignores groups: it
    has the outputs of all groups side by side.

    Args:
      kernel: ``(..., C_out)`` float, the kernel of a convolution or of a dense layer.

    Returns:
      A scalar, at least float32.

    Raises:
      ValueError: as :func:`kernel_matrix_singular_values`.

    Source: Miyato et al. 2018; Yoshida & Miyato 2017.
    """
    return kernel_matrix_singular_values(kernel)[0]


def scale(kernel: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the kernel divided by its largest modulus, and the largest modulus.

    Squares of the entries then neither overflow nor vanish. Both results are at least
    float32.
    """
    wide = kernel.astype(at_least_single(kernel.dtype))
    largest = lax.stop_gradient(jnp.max(jnp.abs(wide)))
    largest = jnp.where(largest == 0, 1.0, largest)
    return wide / largest, largest


def _convolve(images: jax.Array, kernel: jax.Array, where: Geometry) -> jax.Array:
    padding = where.padding
    if where.periodic:
        ends = [(0, 0), *padding, (0, 0)]
        images = jnp.pad(images, ends, mode="wrap")
        padding = ((0, 0),) * len(padding)
    rank = images.ndim
    last_channel = (0, rank - 1, *range(1, rank - 1))
    return lax.conv_general_dilated(
        images,
        kernel,
        where.strides,
        padding,
        rhs_dilation=where.dilation,
        dimension_numbers=lax.ConvDimensionNumbers(
            last_channel, (rank - 1, rank - 2, *range(rank - 2)), last_channel
        ),
        feature_group_count=where.groups,
        # The default of some accelerators rounds float32 factors to 10 bits.
        precision="highest",
    )


def _pads(padding: Padding, where: Geometry) -> tuple[tuple[int, int], ...]:
    if isinstance(padding, str):
        if padding not in PADDINGS:
            raise ValueError(
                f"padding is {padding!r}; it may be {', '.join(PADDINGS)} or pairs."
            )
        if padding == "VALID":
            return ((0, 0),) * len(where.sizes)
        if padding == "CIRCULAR":
            return tuple(((e - 1) // 2, e // 2) for e in where.extents)
        return tuple(
            (total // 2, total - total // 2)
            for size, extent, stride in zip(
                where.sizes, where.extents, where.strides, strict=True
            )
            for total in [
                max((math.ceil(size / stride) - 1) * stride + extent - size, 0)
            ]
        )
    pairs = tuple(tuple(pair) for pair in padding)
    if len(pairs) != len(where.sizes) or not all(
        len(pair) == 2 and all(_is_int(n) for n in pair) for pair in pairs
    ):
        raise ValueError(
            f"padding is {padding!r}; it must be one pair of integers for each of "
            f"{len(where.sizes)} axes, or one of {', '.join(PADDINGS)}."
        )
    return tuple((low, high) for low, high in pairs)


def _positive_ints(name: str, value: object, length: int) -> tuple[int, ...]:
    entries = tuple(value) if isinstance(value, Sequence) else (value,) * length
    found = tuple(int(n) for n in entries if _is_int(n) and n >= 1)
    if len(entries) != length or len(found) != length:
        raise ValueError(
            f"{name} is {value!r}; it must be {length} integers of at least 1."
        )
    return found


def _is_int(value: object) -> TypeGuard[int]:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)
