"""Kernels whose singular values are clipped from above.

Clipping the singular values of a matrix at c gives the nearest matrix of spectral norm
at most c. Clipping those of a convolution on a periodic grid gives the nearest operator
of that norm that commutes with shifts, but the result has taps on the whole grid.
Removing the taps that the kernel does not have is a projection onto kernels of its
size, which raises the norm again. Alternating the two projections converges to a kernel
with the norm and the size.
"""

import math
from collections.abc import Sequence

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
      An array with the shape and dtype of ``matrix``, of norm at most ``bound`` up to
      rounding. It is ``matrix`` to the last bit if its computed norm is at most
      ``bound``. Derivatives exist at equal and at zero singular values, too.

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
    """``size * scaled`` clipped, and its largest singular value before clipping."""
    left, values, right = jnp.linalg.svd(scaled, full_matrices=False)
    kept = left * jnp.minimum(size * values, limit)[None]
    return jnp.matmul(kept, right, precision="highest"), size * values[0]


@_clip.defjvp
def _clip_jvp(
    primals: tuple[jax.Array, jax.Array, jax.Array],
    tangents: tuple[jax.Array, jax.Array, jax.Array],
) -> tuple[tuple[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]:
    """The derivative of a function of singular values, by divided differences.

    The divided differences of ``min(s, limit)`` exist for equal and for zero values,
    where the derivatives of singular vectors do not exist.

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

    def divide(
        top: jax.Array, bottom: jax.Array, otherwise: jax.Array | float
    ) -> jax.Array:
        usable = bottom != 0
        return jnp.where(usable, top / jnp.where(usable, bottom, 1.0), otherwise)

    same = jnp.where(above, 0.0, 1.0)
    across = divide(
        kept[:, None] - kept[None],
        raised[:, None] - raised[None],
        jnp.minimum(same[:, None], same[None]),
    )
    # If both values exceed the limit, the difference is rounding only.
    across = jnp.where(above[:, None] & above[None], 0.0, across)
    along = divide(kept[:, None] + kept[None], raised[:, None] + raised[None], 1.0)
    shrunk = divide(kept, raised, 1.0)
    inner = multiply(left.T, size * moved, right.T)
    middle = 0.5 * (across * (inner + inner.T) + along * (inner - inner.T))
    # The part of the change outside the row space and the column space is shrunk like
    # the singular values.
    beside = size * moved - multiply(left, left.T, size * moved)
    below = multiply(left.T, size * moved) - multiply(inner, right)
    change = multiply(left, middle, right) + multiply(
        beside, right.T * shrunk[None], right
    )
    change = change + multiply(left * shrunk[None], below)
    change = change + more * multiply(left * jnp.where(above, 1.0, 0.0)[None], right)
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

    An iteration decomposes the block of each frequency and subtracts from the kernel
    the part ``U max(S - bound, 0) V^H`` that exceeds the bound, transformed back and
    restricted to the taps of the kernel. The result is the kernel of the clipped
    operator without its other taps, so its norm exceeds the bound again, by less in
    each iteration. For example, a random 3 x 3 kernel of norm 5.8, clipped at 1, has
    norm 1.38 after one iteration and 1.03 after twelve. With ``rescale``, the kernel is
    multiplied by the missing factor at the end.

    The published method is ``num_iterations=1, rescale=False``. The function is a
    projection between steps of training, not a layer: it is not reverse-differentiable.

    With a stride, the operator is a part of the operator with stride 1, so the bound
    holds for it, too. The bound also holds for zero padding if the grid has, along each
    axis, the size of the image plus the larger of its two paddings.

    If the dilated kernel is larger than the grid, taps that fall on one place act as
    their sum, and share the change of the sum equally. The operator on this grid then
    has norm at most the bound; operators on larger grids may exceed it.

    Args:
      kernel: ``(*spatial, C_in / groups, C_out)`` float, 1 to 3 spatial axes.
      sizes: sizes of the grid, one for all axes or one for each.
      bound: bound of the singular values, a positive scalar, may be traced; inf changes
        nothing.
      kernel_dilation: as in :func:`opnorm.linalg.convolution_map`.
      groups: as in :func:`opnorm.linalg.convolution_map`.
      num_iterations: largest number of iterations, each of which decomposes every
        block. One is done if the taps cover the grid, since no tap is removed then.
      rescale: whether the result is multiplied by ``min(1, bound / norm)``, with an
        upper bound of the norm (:func:`opnorm.linalg.convolution_upper_bound`). The
        norm is then at most ``bound`` up to rounding to the dtype of the kernel.

    Returns:
      An array with the shape and dtype of ``kernel``. It is ``kernel`` to the last bit
      if its computed singular values are within the bound.

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

    # The inverse transform from blocks to taps is the adjoint, up to weights.
    adjoint = jax.linear_transpose(blocks, scaled)
    alike = np.bincount(periodic.inverse)[:, None, None, None]
    weight = jnp.asarray(alike / math.prod(where.sizes), scaled.dtype)
    shares = jnp.asarray(1 / _at_taps(shared, where), scaled.dtype)

    def excess(block: jax.Array, _: jax.Array) -> tuple[jax.Array, jax.Array]:
        left, values, right = jnp.linalg.svd(block, full_matrices=False)
        over = jnp.maximum(values - limit, 0.0).astype(left.dtype)[:, None]
        return jnp.matmul(left * over, right, precision="highest"), jnp.max(values)

    def iterate(
        state: tuple[jax.Array, jax.Array, jax.Array],
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        number, taken, _ = state
        cut, top = spectrum.each_frequency(excess, scaled - taken, where, periodic)
        (back,) = adjoint(weight.astype(cut.dtype) * cut.conj())
        return number + 1, taken + shares * back, jnp.max(top) > limit

    number, taken, above = loops.while_loop(
        lambda state: (state[0] < num_iterations) & state[2],
        iterate,
        (jnp.int32(0), jnp.zeros_like(scaled), jnp.bool_(True)),
    )
    # The difference leaves a kernel within the bound unchanged.
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
    clipped_kernel: jax.Array = found.astype(kernel.dtype)
    return clipped_kernel


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
    """The places of the taps on the grid, one index for each axis."""
    along = [
        np.arange(taps) * step % n
        for n, taps, step in zip(
            where.sizes, where.kernel_sizes, where.dilation, strict=True
        )
    ]
    return np.ix_(*along)


def _taps_at_each_place(where: Geometry) -> np.ndarray:
    """The number of taps that fall on each place of the grid."""
    counts = np.zeros(where.sizes, int)
    np.add.at(counts, _places(where), 1)
    return counts


def _at_taps(values: np.ndarray, where: Geometry) -> np.ndarray:
    """The value at the place of each tap, with axes for the channels."""
    at_taps: np.ndarray = values[_places(where)]
    return at_taps[..., None, None]
