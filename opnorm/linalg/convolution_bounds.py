"""linalg: the operator norm of a convolution, and rigorous bounds on both sides."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from opnorm.linalg import checks
from opnorm.linalg import convolution_spectrum as spectrum
from opnorm.linalg.convolution import Geometry, Padding, as_map, geometry, scale
from opnorm.linalg.golub_kahan import golub_kahan
from opnorm.linalg.norms import norm

METHODS = ("svd", "gram_iteration")


class ConvolutionNorm(NamedTuple):
    """The operator norm of a convolution and the vectors that attain it.

    Attributes:
      value: scalar, a lower bound of the norm up to rounding.
      residual: scalar; some singular value lies within this of the value.
      right: ``(*input_shape,)``, v of length 1.
      left: the shape of the result, u of length 1 with ``A v = value u``.
    """

    value: jax.Array
    residual: jax.Array
    right: jax.Array
    left: jax.Array


class ConvolutionBounds(NamedTuple):
    """Scalars around the operator norm of a convolution.

    Attributes:
      lower: at most the norm, rounding included.
      upper: at least the norm, rounding included.
      value: the norm as found from below, before rounding is taken off.
      residual: some singular value lies within this of the value.
    """

    lower: jax.Array
    upper: jax.Array
    value: jax.Array
    residual: jax.Array


def convolution_norm(
    kernel: jax.Array,
    input_shape: Sequence[int],
    *,
    strides: int | Sequence[int] = 1,
    padding: Padding = "SAME",
    kernel_dilation: int | Sequence[int] = 1,
    groups: int = 1,
    num_steps: int = 20,
    init: jax.Array | None = None,
) -> ConvolutionNorm:
    """Computes the largest singular value of a convolution with its own padding.

    Golub-Kahan steps on one picture, two convolutions each, from the Fourier mode that
    the periodic convolution amplifies most. The value can be differentiated with
    respect to the kernel: it is ``<u, A v>`` with u and v held constant. Second
    derivatives are wrong.

    Args:
      kernel: ``(*spatial, C_in / groups, C_out)`` float, 1 to 3 spatial axes.
      input_shape: ``(*spatial, C_in)``.
      strides, padding, kernel_dilation, groups: as
        :func:`opnorm.linalg.convolution_map`.
      num_steps: at least 1; capped at the number of singular values, after which the
        result is exact.
      init: ``input_shape``, a start such as the ``right`` of an earlier call.

    Returns:
      Norm, error bar and vectors, at least float32. NaN for a kernel that is not
      finite, 0 for a zero one.

    Raises:
      ValueError: for num_steps < 1, an init of another shape, and as
        :func:`opnorm.linalg.convolution_map`.

    Source: Farnia et al. 2019, Algorithm 1 (which does power steps).
    """
    where = geometry(kernel, input_shape, strides, padding, kernel_dilation, groups)
    _check(num_steps=num_steps)
    if init is not None and init.shape != where.in_shape:
        raise ValueError(f"init has shape {init.shape}; it must be {where.in_shape}.")
    return _norm(kernel, where, num_steps, init)


def convolution_upper_bound(
    kernel: jax.Array,
    input_shape: Sequence[int],
    *,
    strides: int | Sequence[int] = 1,
    padding: Padding = "SAME",
    kernel_dilation: int | Sequence[int] = 1,
    groups: int = 1,
    method: str = "svd",
    num_iterations: int = 6,
) -> jax.Array:
    """Computes an upper bound of a convolution's norm from small matrices.

    With zeros around it, a convolution is a compression of the periodic one on any grid
    that is larger than the picture by the padding on one side (by at most the dilated
    kernel less one), whose norm is that of the largest block. With a 3x3 kernel the
    bound is about 0.1 % above the norm on 32x32 pictures, 2 % on 8x8 ones, a third on
    4x4 ones without padding. A periodic convolution has its own grid, so the bound is
    its norm, unless a stride does not divide a size: then stride 1 bounds it along that
    axis.

    Args:
      kernel: ``(*spatial, C_in / groups, C_out)`` float, 1 to 3 spatial axes.
      input_shape: ``(*spatial, C_in)``.
      strides, padding, kernel_dilation, groups: as
        :func:`opnorm.linalg.convolution_map`.
      method: "svd" for the blocks' norms; "gram_iteration" for upper bounds of them by
        products alone, fast on accelerators.
      num_iterations: of "gram_iteration"; t of them exceed the norm of a block of rank
        r by a factor of at most ``r^(2^-(t + 1))``, and by far less where few singular
        values are near the largest.

    Returns:
      A scalar, at least float32: an upper bound in exact arithmetic plus a margin for
      rounding, of the order of 1e-4 relative in float32.

    Raises:
      ValueError: for an unknown method, num_iterations < 1, and as
        :func:`opnorm.linalg.convolution_map`.

    Source: Sedghi et al. 2019; Delattre et al. 2023 (Gram iteration).
    """
    where = geometry(kernel, input_shape, strides, padding, kernel_dilation, groups)
    _check(method, num_iterations)
    return _upper(kernel, where, method, num_iterations)


def convolution_norm_bounds(
    kernel: jax.Array,
    input_shape: Sequence[int],
    *,
    strides: int | Sequence[int] = 1,
    padding: Padding = "SAME",
    kernel_dilation: int | Sequence[int] = 1,
    groups: int = 1,
    method: str = "svd",
    num_iterations: int = 6,
    num_steps: int = 20,
) -> ConvolutionBounds:
    """Computes bounds of a convolution's norm on both sides.

    Args:
      kernel, input_shape: as :func:`convolution_norm`.
      strides, padding, kernel_dilation, groups: as
        :func:`opnorm.linalg.convolution_map`.
      method, num_iterations: of the upper bound, :func:`convolution_upper_bound`.
      num_steps: of the lower bound, :func:`convolution_norm`.

    Returns:
      ``lower <= ||A|| <= upper``, and the value and residual behind the lower bound.

    Raises:
      ValueError: as the two functions.
    """
    where = geometry(kernel, input_shape, strides, padding, kernel_dilation, groups)
    _check(method, num_iterations, num_steps)
    upper = _upper(kernel, where, method, num_iterations)
    found = _norm(kernel, where, num_steps, None)
    lower = found.value * (1 - _lower_margin(kernel, found))
    return ConvolutionBounds(lower, upper, found.value, found.residual)


def _lower_margin(kernel: jax.Array, found: ConvolutionNorm) -> float:
    """Relative rounding error of a norm: of each window's sum, and of the lengths."""
    terms = kernel.size // kernel.shape[-1]
    lengths = math.sqrt(found.left.size) + math.sqrt(found.right.size)
    return float(jnp.finfo(found.value.dtype).eps) * (terms + lengths + 20)


def _check(method: str = "svd", num_iterations: int = 1, num_steps: int = 1) -> None:
    if method not in METHODS:
        raise ValueError(f"method is {method!r}; it may be {', '.join(METHODS)}.")
    for name, number in (("num_iterations", num_iterations), ("num_steps", num_steps)):
        checks.check_count(name, number, 1)


def _norm(
    kernel: jax.Array,
    where: Geometry,
    num_steps: int,
    init: jax.Array | None,
) -> ConvolutionNorm:
    scaled, size = scale(kernel)
    fixed = lax.stop_gradient(scaled)
    linear_map = as_map(fixed, where)
    if init is None:
        start = spectrum.top_mode(fixed, where)
    else:
        start = lax.stop_gradient(init).astype(fixed.dtype)[None]
    steps = min(num_steps, linear_map.in_size, linear_map.out_size)
    found = golub_kahan(linear_map, num_steps=steps, init=linear_map.matvec(start))
    left, right = lax.stop_gradient((found.left[0, 0], found.right[0, 0]))
    value = jnp.sum(left * as_map(scaled, where).matvec(right[None])[0])
    return ConvolutionNorm(
        size * value, lax.stop_gradient(size * found.residual[0, 0]), right, left
    )


def _upper(
    kernel: jax.Array, where: Geometry, method: str, num_iterations: int
) -> jax.Array:
    scaled, size = scale(kernel)
    if where.periodic:
        strides = [
            stride if n % stride == 0 else 1
            for n, stride in zip(where.sizes, where.strides, strict=True)
        ]
        sizes = where.sizes
    else:
        # Windows may reach over the end of this grid, but not back into the picture.
        strides = list(where.strides)
        reach = [
            min(max(low, high, 0), extent - 1)
            for (low, high), extent in zip(where.padding, where.extents, strict=True)
        ]
        grown = [n + more for n, more in zip(where.sizes, reach, strict=True)]
        sizes = spectrum.round_up(grown, strides)

    def largest(block: jax.Array, _: jax.Array) -> jax.Array:
        if method == "svd":
            return jnp.max(jnp.linalg.svd(block, compute_uv=False))
        return jnp.max(_gram_iteration(block, num_iterations))

    periodic = spectrum.grid(sizes, strides)
    bound = jnp.max(spectrum.each_frequency(largest, scaled, where, periodic))
    # Products and decompositions of blocks err relative to their norm, their entries,
    # sums over the taps with rounded waves, relative to the kernel.
    rows = where.out_channels // where.groups
    columns = math.prod(strides) * where.in_channels // where.groups
    taps = math.prod(where.kernel_sizes)
    split = scaled.reshape(taps, -1, where.groups, rows)
    length = jnp.max(norm(jnp.moveaxis(split, 2, 0), 2.0))
    eps = float(jnp.finfo(scaled.dtype).eps)
    relative = eps * (2 * (rows + columns) + 20)
    absolute = eps * math.sqrt(taps) * (taps + 10 * len(sizes) + 10) * length
    return size * (bound * (1 + relative) + absolute)


def _gram_iteration(block: jax.Array, num_iterations: int) -> jax.Array:
    """Upper bounds of the spectral norms of ``(groups, rows, columns)``."""
    if block.shape[1] > block.shape[2]:
        block = jnp.swapaxes(block, 1, 2)
    bound = jnp.ones(block.shape[0], block.real.dtype)
    # ||B|| = ||B B^H||^(1/2), and so on; in the end the Frobenius norm bounds it. Each
    # matrix is scaled to length 1 first, so that powers neither overflow nor vanish.
    for step in range(num_iterations + 1):
        length = norm(jnp.concatenate([block.real, block.imag], axis=1), 2.0)
        # The root has no slope at zero.
        safe = jnp.where(length > 0, length, 1.0)
        bound = jnp.where(length > 0, bound * safe ** (0.5**step), length)
        block = block / safe[:, None, None]
        if step < num_iterations:
            block = jnp.einsum("gri,gsi->grs", block, block.conj(), precision="highest")
    return bound
