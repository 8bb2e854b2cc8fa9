"""linalg: kernels whose singular values are clipped from above.

Of a matrix, clipping the singular values at c gives the nearest matrix of spectral norm
at most c. Of a convolution on a periodic grid it gives the nearest operator of that
norm that commutes with shifts, but one with taps all over the grid. Leaving out those
that the kernel does not have is a projection, too, on kernels of its size, and brings
part of the norm back. The two in turn, again and again, tend to a kernel that has the
norm and the size.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from opnorm.linalg import checks, loops
from opnorm.linalg import convolution_spectrum as spectrum
from opnorm.linalg.convolution import Geometry, geometry, scale
from opnorm.linalg.convolution_bounds import convolution_upper_bound
from opnorm.linalg.norms import check_length


def clip_singular_values(matrix: jax.Array, bound: float | jax.Array) -> jax.Array:
    """Computes ``U min(S, bound) V^T``, the nearest matrix of norm at most the bound.

    Args:
      matrix: ``(m, n)`` float, such as a dense layer's kernel.
      bound: positive scalar, may be traced; inf changes nothing.

    Returns:
      Shape and dtype of ``matrix``, its norm at most ``bound`` up to rounding: itself,
      to the last bit, where its largest singular value, as computed, is. It can be
      differentiated, at equal and zero singular values too.

    Raises:
      ValueError: for another number of axes, an empty matrix, a dtype that is not
        float, or a bound that is not positive.
    """
    check_length("bound", bound, positive=True)
    floating = jnp.issubdtype(matrix.dtype, jnp.floating)
    if matrix.ndim != 2 or 0 in matrix.shape or not floating:
        raise ValueError(
            f"matrix has shape {matrix.shape} and dtype {matrix.dtype}; it must be "
            "floating, (m, n) and not empty."
        )
    scaled, size = scale(matrix)
    limit = jnp.asarray(bound, scaled.dtype)
    clipped, largest = _clip(scaled, limit, size)
    return jnp.where(largest > limit, clipped.astype(matrix.dtype), matrix)


@jax.custom_jvp
def _clip(
    scaled: jax.Array, limit: jax.Array, size: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """``size * scaled`` clipped, and its largest singular value before."""
    left, values, right = jnp.linalg.svd(scaled, full_matrices=False)
    kept = left * jnp.minimum(size * values, limit)
    return jnp.matmul(kept, right, precision="highest"), size * values[0]


@_clip.defjvp
def _clip_jvp(primals: Any, tangents: Any) -> Any:
    """The derivative of a function of singular values, by divided differences.

    Those of ``min(s, limit)`` exist for equal and for zero values, where the
    derivatives of singular vectors do not.

    Source: Noferini 2017, A formula for the Fréchet derivative of a generalized matrix
    function.
    """
    scaled, limit, size = primals
    moved, more, _ = tangents
    left, values, right = jnp.linalg.svd(scaled, full_matrices=False)
    raised = size * values
    kept, above = jnp.minimum(raised, limit), raised > limit

    def multiply(*factors: jax.Array) -> jax.Array:
        return jnp.linalg.multi_dot(factors, precision="highest")

    def divide(top: jax.Array, bottom: jax.Array, otherwise: Any) -> jax.Array:
        usable = bottom != 0
        return jnp.where(usable, top / jnp.where(usable, bottom, 1.0), otherwise)

    same = jnp.where(above, 0.0, 1.0)
    across = divide(
        kept[:, None] - kept, raised[:, None] - raised, jnp.minimum(same[:, None], same)
    )
    # Both exceed the limit: their difference is nothing but rounding.
    across = jnp.where(above[:, None] & above, 0.0, across)
    along = divide(kept[:, None] + kept, raised[:, None] + raised, 1.0)
    shrunk = divide(kept, raised, 1.0)
    inner = multiply(left.T, size * moved, right.T)
    middle = 0.5 * (across * (inner + inner.T) + along * (inner - inner.T))
    # The part of the change outside of the rows or columns is shrunk as they are.
    beside = size * moved - multiply(left, left.T, size * moved)
    below = multiply(left.T, size * moved) - multiply(inner, right)
    change = multiply(left, middle, right) + multiply(beside, right.T * shrunk, right)
    change = change + multiply(left * shrunk, below)
    change = change + more * multiply(left * jnp.where(above, 1.0, 0.0), right)
    top = multiply(left[:, :1].T, size * moved, right[:1].T)[0, 0]
    return _clip(*primals), (change, top)


def clip_circular_singular_values(
    kernel: jax.Array,
    sizes: int | Sequence[int],
    bound: float | jax.Array,
    *,
    kernel_dilation: int | Sequence[int] = 1,
    groups: int = 1,
    num_iterations: int = 10,
    rescale: bool = True,
) -> jax.Array:
    """Clips the singular values of a convolution on a periodic grid, with stride 1.

    An iteration decomposes the block of each frequency, takes from the kernel what
    exceeds the bound, ``U max(S - bound, 0) V^H``, transformed back and restricted to
    the kernel's taps. That is the kernel of the clipped operator without its other
    taps, so the norm is above the bound again, by less from one iteration to the next:
    a random 3 x 3 kernel of norm 5.8 has 1.38 for a bound of 1 after one, 1.03 after
    twelve. At last the kernel is multiplied by what is missing.

    The published method is ``num_iterations=1, rescale=False``. This is a projection
    between steps of training, not a layer: it is not reverse-differentiable.

    With a stride the operator is a part of this one, so the bound holds for it, too.
    It holds for zeros around the picture instead of its other end if along each axis
    the grid has the size of the picture plus the larger of its two paddings.

    Where the dilated kernel is larger than the grid, taps that fall on one place act as
    their sum there, and what the sum has to change they share equally: the operator on
    this grid has norm at most the bound, those on larger grids may exceed it.

    Args:
      kernel: ``(*spatial, C_in / groups, C_out)`` float, 1 to 3 spatial axes.
      sizes: of the grid, one for all axes or one for each.
      bound: of the singular values, a positive scalar, may be traced; inf changes
        nothing.
      kernel_dilation, groups: as :func:`opnorm.linalg.convolution_map`.
      num_iterations: at most so many; one where the taps cover the grid, since nothing
        is left out then. Each decomposes every block.
      rescale: multiplies by ``min(1, bound / norm)`` in the end, with an upper bound of
        the norm (:func:`opnorm.linalg.convolution_upper_bound`), so that the norm is at
        most ``bound`` up to rounding to the kernel's dtype.

    Returns:
      Shape and dtype of ``kernel``: itself, to the last bit, where its singular values,
      as computed, are within the bound.

    Raises:
      ValueError: for a bound that is not positive, num_iterations < 1, and as
        :func:`opnorm.linalg.convolution_map`.

    Source: Sedghi et al. 2019, Section 3; alternating projections.
    """
    check_length("bound", bound, positive=True)
    num_iterations = checks.check_count("num_iterations", num_iterations, 1)
    where = _geometry(kernel, sizes, kernel_dilation, groups)
    periodic = spectrum.grid(where.sizes, where.strides)
    scaled, size = scale(kernel)
    limit = jnp.asarray(bound, scaled.dtype) / size
    shared = _taps_at_each_place(where)
    if np.count_nonzero(shared) == shared.size:
        num_iterations = 1

    def blocks(kernel: jax.Array) -> jax.Array:
        return spectrum.each_frequency(lambda block, _: block, kernel, where, periodic)

    # Inverse transform of blocks to the taps: its adjoint, but for the weights.
    adjoint = jax.linear_transpose(blocks, scaled)
    alike = np.bincount(periodic.inverse)[:, None, None, None]
    weight = jnp.asarray(alike / math.prod(where.sizes), scaled.dtype)
    shares = jnp.asarray(1 / _at_taps(shared, where), scaled.dtype)

    def excess(block: jax.Array, _: jax.Array) -> tuple[jax.Array, jax.Array]:
        left, values, right = jnp.linalg.svd(block, full_matrices=False)
        over = jnp.maximum(values - limit, 0.0)[:, None]
        return jnp.matmul(left * over, right, precision="highest"), jnp.max(values)

    def iterate(
        state: tuple[jax.Array, jax.Array, jax.Array],
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        number, taken, _ = state
        cut, top = spectrum.each_frequency(excess, scaled - taken, where, periodic)
        (back,) = adjoint(weight * cut.conj())
        return number + 1, taken + shares * back, jnp.max(top) > limit

    number, taken, above = loops.while_loop(
        lambda state: (state[0] < num_iterations) & state[2],
        iterate,
        (jnp.int32(0), jnp.zeros_like(scaled), jnp.bool_(True)),
    )
    # Differences, so that a kernel within the bound stays what it is.
    found = kernel.astype(scaled.dtype) - size * taken
    if rescale:
        upper = convolution_upper_bound(
            found,
            where.in_shape,
            padding="CIRCULAR",
            kernel_dilation=where.dilation,
            groups=groups,
        )
        clipped = above | (number > 1)
        factor = jnp.minimum(jnp.asarray(bound, found.dtype) / upper, 1.0)
        found = jnp.where(clipped, factor, 1.0) * found
    return found.astype(kernel.dtype)


def _geometry(
    kernel: jax.Array,
    sizes: int | Sequence[int],
    kernel_dilation: int | Sequence[int],
    groups: int,
) -> Geometry:
    axes = kernel.ndim - 2
    lengths = (sizes,) * axes if isinstance(sizes, int) else tuple(sizes)
    shape = (*lengths, kernel.shape[-2] * groups if axes > 0 else groups)
    where = geometry(kernel, shape, 1, "CIRCULAR", kernel_dilation, groups)
    # With one tap along an axis, all its frequencies have the same block.
    single = [
        1 if taps == 1 else n
        for n, taps in zip(where.sizes, where.kernel_sizes, strict=True)
    ]
    return where._replace(sizes=tuple(single))


def _places(where: Geometry) -> tuple[np.ndarray, ...]:
    """Where the taps fall on the grid, an index for each axis."""
    along = [
        np.arange(taps) * step % n
        for n, taps, step in zip(
            where.sizes, where.kernel_sizes, where.dilation, strict=True
        )
    ]
    return np.ix_(*along)


def _taps_at_each_place(where: Geometry) -> np.ndarray:
    """How many taps fall on each place of the grid."""
    counts = np.zeros(where.sizes, int)
    np.add.at(counts, _places(where), 1)
    return counts


def _at_taps(values: np.ndarray, where: Geometry) -> np.ndarray:
    """Values of places, one for each tap, with axes for the channels."""
    return values[_places(where)][..., None, None]
