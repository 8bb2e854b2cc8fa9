"""linalg: convolutions as linear maps on one picture, and norms of their kernels."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from opnorm.linalg.linear_map import LinearMap, varying_axes
from opnorm.linalg.norms import norm

Padding = str | Sequence[tuple[int, int]]

PADDINGS = ("SAME", "VALID", "CIRCULAR")


class Geometry(NamedTuple):
    """What a convolution does besides its kernel's values; one entry per spatial axis.

    Attributes:
      sizes: of the picture.
      kernel_sizes: taps along each axis, before dilation.
      strides: places that the window moves by.
      dilation: places between neighbouring taps.
      padding: places added before and after.
      periodic: whether they are filled from the other end, or with zeros.
      groups: channels are split into so many independent convolutions.
      in_channels: of the picture.
      out_channels: of the result.
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
        """Shape of the picture, channels last."""
        return (*self.sizes, self.in_channels)

    @property
    def out_shape(self) -> tuple[int, ...]:
        """Shape of the result, channels last."""
        sizes = [
            (size + low + high - extent) // stride + 1
            for size, (low, high), extent, stride in zip(
                self.sizes, self.padding, self.extents, self.strides, strict=True
            )
        ]
        return (*sizes, self.out_channels)

    @property
    def extents(self) -> tuple[int, ...]:
        """Places that the dilated kernel spans."""
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
    """Resolves and checks the options that all functions of convolutions share."""
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
            f"{tuple(input_shape)}; the picture must have groups times the kernel's "
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
    """Returns a convolution, without its bias, as a linear map on one picture.

    The operation of ``flax.linen.Conv``, a correlation:
    ``y[o] = sum_t K[t] x[o * strides + t * kernel_dilation - low]``.

    Args:
      kernel: ``(*spatial, C_in / groups, C_out)`` float, 1 to 3 spatial axes.
      input_shape: ``(*spatial, C_in)``, of the picture.
      strides: places that the window moves by, one for all axes or one for each.
      padding: "SAME", "VALID", "CIRCULAR" (as many places as "SAME" with stride 1,
        filled from the other end), or pairs of zeros added before and after, one pair
        per axis; negative numbers crop.
      kernel_dilation: places between neighbouring taps, for all axes or for each.
      groups: channels are split into so many independent convolutions.

    Returns:
      A map with a batch of one, in the kernel's dtype.

    Raises:
      ValueError: for an argument of a wrong shape, dtype or range.
    """
    where = geometry(kernel, input_shape, strides, padding, kernel_dilation, groups)
    return as_map(kernel, where)


def as_map(kernel: jax.Array, where: Geometry) -> LinearMap:
    """The map of a kernel in a geometry that was checked before."""

    def matvec(v: jax.Array) -> jax.Array:
        return _convolve(linear_map.spread(v), kernel, where)

    def rmatvec(u: jax.Array) -> jax.Array:
        picture = jnp.zeros((1, *where.in_shape), kernel.dtype)
        return jax.linear_transpose(matvec, linear_map.spread(picture))(
            linear_map.spread(u)
        )[0]

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

    ``||A||_F^2 = sum_t n_t ||K[t]||_F^2`` with n_t the number of windows in which tap t
    lies on the picture; taps that fall on one place of a periodic picture are added
    first. Not the Frobenius norm of the kernel, which counts one window.

    Args:
      kernel, input_shape, strides, padding, kernel_dilation, groups: as
        :func:`convolution_map`.

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
            # Taps that meet again after a turn around the picture act as one.
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
      kernel: ``(..., C_out)`` float, of a convolution or a dense layer.

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

    It is **no bound of the convolution's norm**: on trained kernels it is 0.55 to 0.96
    of it. The convolution's norm is at most ``sqrt(prod ceil(kernel size / stride))``
    times as large (without dilation), and at least as large where some window lies
    inside the picture and there are no groups. Groups are not seen: the matrix has the
    outputs of all groups side by side.

    Args:
      kernel: ``(..., C_out)`` float, of a convolution or a dense layer.

    Returns:
      A scalar, at least float32.

    Raises:
      ValueError: as :func:`kernel_matrix_singular_values`.

    Source: Miyato et al. 2018; Yoshida & Miyato 2017.
    """
    return kernel_matrix_singular_values(kernel)[0]


def scale(kernel: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The kernel with largest modulus 1, at least float32, and what that was.

    Squares of its entries then neither overflow nor vanish.
    """
    wide = kernel.astype(jnp.promote_types(kernel.dtype, jnp.float32))
    largest = lax.stop_gradient(jnp.max(jnp.abs(wide)))
    largest = jnp.where(largest == 0, 1.0, largest)
    return wide / largest, largest


def _convolve(pictures: jax.Array, kernel: jax.Array, where: Geometry) -> jax.Array:
    padding = where.padding
    if where.periodic:
        ends = [(0, 0), *padding, (0, 0)]
        pictures = jnp.pad(pictures, ends, mode="wrap")
        padding = ((0, 0),) * len(padding)
    rank = pictures.ndim
    last_channel = (0, rank - 1, *range(1, rank - 1))
    return lax.conv_general_dilated(
        pictures,
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


def _positive_ints(name: str, value: Any, length: int) -> tuple[int, ...]:
    single = (value,) * length if _is_int(value) else ()
    entries = tuple(value) if isinstance(value, Sequence) else single
    if len(entries) != length or not all(_is_int(n) and n >= 1 for n in entries):
        raise ValueError(
            f"{name} is {value!r}; it must be {length} integers of at least 1."
        )
    return tuple(int(n) for n in entries)


def _is_int(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)
