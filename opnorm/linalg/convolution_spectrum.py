"""Spectra of periodic convolutions, from one small matrix for each frequency.

A convolution on a periodic grid maps Fourier modes to Fourier modes. With a stride,
modes whose frequencies agree on the coarse grid of the result (aliases) are mapped to
the same mode. So each coarse frequency has a block of ``C_out`` rows and
``prod(strides) C_in`` columns, and the singular values of the operator are those of all
blocks. With a real kernel, opposite frequencies have conjugate blocks, and one of each
pair is computed. Dilation moves the taps apart. Each group has its own blocks.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from opnorm.linalg import loops
from opnorm.linalg.convolution import Geometry, geometry, scale

Tree = TypeVar("Tree")

# At most this many complex numbers of blocks are held: 128 MB in single precision.
_BLOCK_BUDGET = 2**24
# Power steps only find the frequency. Golub-Kahan steps refine the vector.
_POWER_STEPS = 6


class Grid(NamedTuple):
    """The frequencies of a periodic grid.

    Attributes:
      sizes: sizes of the grid, multiples of the strides.
      strides: strides of the convolution.
      coarse: ``(F, axes)`` int, coarse frequencies, one of each opposite pair.
      inverse: ``(all,)`` int, the row of ``coarse`` for each frequency of the result.
    """

    sizes: tuple[int, ...]
    strides: tuple[int, ...]
    coarse: np.ndarray
    inverse: np.ndarray

    @property
    def aliases(self) -> np.ndarray:
        """The aliases of the frequency 0, ``(prod(strides), axes)`` int32."""
        parts = [range(s) for s in self.strides]
        steps = np.array(self.sizes) // np.array(self.strides)
        aliases: np.ndarray = np.array(list(itertools.product(*parts))) * steps
        return aliases.astype(np.int32)


def grid(sizes: Sequence[int], strides: Sequence[int]) -> Grid:
    """Returns the grid of ``sizes``, which the strides must divide."""
    coarse_sizes = np.array(sizes) // np.array(strides)
    every = np.indices(coarse_sizes).reshape(len(coarse_sizes), -1).T
    opposite = -every % coarse_sizes
    numbers = np.minimum(
        np.ravel_multi_index(tuple(every.T), tuple(coarse_sizes)),
        np.ravel_multi_index(tuple(opposite.T), tuple(coarse_sizes)),
    )
    kept, inverse = np.unique(numbers, return_inverse=True)
    return Grid(tuple(sizes), tuple(strides), every[kept], inverse)


def circular_singular_values(
    kernel: jax.Array,
    sizes: int | Sequence[int],
    *,
    strides: int | Sequence[int] = 1,
    kernel_dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> jax.Array:
    """Computes all singular values of a convolution on a periodic grid.

    Args:
      kernel: ``(*spatial, C_in / groups, C_out)`` float, 1 to 3 spatial axes.
      sizes: sizes of the grid, one for all axes or one for each; multiples of the
        strides.
      strides: as in :func:`opnorm.linalg.convolution_map`.
      kernel_dilation: as in :func:`opnorm.linalg.convolution_map`.
      groups: as in :func:`opnorm.linalg.convolution_map`.

    Returns:
      ``(k,)``, largest first, at least float32, with
      ``k = prod(sizes / strides) groups min(C_out, prod(strides) C_in) / groups``.

    Raises:
      ValueError: for sizes that the strides do not divide, and as
        :func:`opnorm.linalg.convolution_map`.

    Source: Sedghi et al. 2019 for stride 1; polyphase aliasing for strides.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import numpy as np
      >>> from opnorm import linalg
      >>> kernel = jnp.array([1.0, 1.0]).reshape(2, 1, 1)
      >>> values = jax.jit(linalg.circular_singular_values, static_argnums=1)(kernel, 4)
      >>> print(np.asarray(values + 0.0).round(3))
      [2.    1.414 1.414 0.   ]
    """
    axes = kernel.ndim - 2
    lengths = (sizes,) * axes if isinstance(sizes, int) else tuple(sizes)
    shape = (*lengths, kernel.shape[-2] * groups)
    where = geometry(kernel, shape, strides, "CIRCULAR", kernel_dilation, groups)
    if any(n % s for n, s in zip(where.sizes, where.strides, strict=True)):
        raise ValueError(
            f"sizes is {sizes}; the strides {where.strides} must divide it."
        )
    periodic = grid(where.sizes, where.strides)
    scaled, size = scale(kernel)
    values = each_frequency(
        lambda block, _: jnp.linalg.svd(block, compute_uv=False),
        scaled,
        where,
        periodic,
    )
    everything = jnp.take(values, periodic.inverse, axis=0).ravel()
    return size * jnp.sort(everything, descending=True)


def each_frequency(
    fun: Callable[[jax.Array, jax.Array], Tree],
    kernel: jax.Array,
    where: Geometry,
    periodic: Grid,
) -> Tree:
    """Maps ``fun(block, coarse frequency)`` over the rows of ``periodic.coarse``.

    Args:
      fun: a function of a block and its frequency. The block is
        ``(groups, C_out / groups, prod(strides) C_in / groups)`` complex, with columns
        sorted by aliases; the frequency is ``(axes,)`` int32.
      kernel: as in :func:`circular_singular_values`.
      where: the geometry of the kernel; sizes, strides and padding are not used.
      periodic: the grid.

    Returns:
      The results, stacked along a new first axis.
    """
    *_, inputs, outputs = kernel.shape
    groups = where.groups
    taps = np.indices(where.kernel_sizes).reshape(len(where.kernel_sizes), -1).T
    taps = (taps * np.array(where.dilation)).astype(np.int32)
    sizes, aliases = np.array([periodic.sizes], np.int32), periodic.aliases
    flat = kernel.reshape(len(taps), inputs, groups, outputs // groups)

    def one(coarse: jax.Array) -> Tree:
        fine = (coarse[None] + aliases) % sizes
        # Turns are reduced as integers, so that the angle is exact up to rounding.
        steps = (fine[:, None] * taps[None] % sizes[None]).astype(float)
        turns = jnp.sum(steps / sizes[None].astype(float), axis=-1)
        angle = (2 * math.pi * (turns - jnp.round(turns))).astype(kernel.dtype)
        parts = [
            jnp.einsum("st,tigo->gosi", wave(angle), flat, precision="highest")
            for wave in (jnp.cos, jnp.sin)
        ]
        block = jax.lax.complex(*parts) / math.sqrt(len(aliases))
        return fun(block.reshape(groups, outputs // groups, -1), coarse)

    budget = max(1, _BLOCK_BUDGET // (outputs * inputs * len(aliases)))
    coarse = jnp.asarray(periodic.coarse, jnp.int32)
    if len(coarse) <= budget:
        return jax.vmap(one)(coarse)
    results: Tree = jax.lax.map(one, coarse, batch_size=budget)
    return results


def top_mode(kernel: jax.Array, where: Geometry) -> jax.Array:
    """Computes an image near the top right singular vector of a convolution.

    In each group the image is the Fourier mode that the periodic convolution amplifies
    most. Unless the padding is periodic, the mode is multiplied by half a period of a
    sine along each axis, since zero padding damps modes at the border. One hundredth of
    a product of noise along each axis is added, so that the image is not orthogonal to
    singular vectors of another symmetry.

    Args:
      kernel: ``(*spatial, C_in / groups, C_out)`` float, with entries of order 1.
      where: the geometry of the kernel.

    Returns:
      ``(1, *where.in_shape)``.
    """
    periodic = grid(round_up(where.sizes, where.strides), where.strides)
    sizes, aliases = np.array([periodic.sizes], np.int32), periodic.aliases

    noise = np.random.default_rng(0)

    def strongest(block: jax.Array, _: jax.Array) -> tuple[jax.Array, jax.Array]:
        # The start is real. With a complex start, the real part of the mode of a real
        # block could vanish.
        start = noise.standard_normal((block.shape[0], block.shape[2]))

        def step(
            _: jax.Array, carry: tuple[jax.Array, jax.Array]
        ) -> tuple[jax.Array, jax.Array]:
            x = carry[1]
            y = jnp.einsum("goi,gi->go", block, x, precision="highest")
            x = jnp.einsum("goi,go->gi", block.conj(), y, precision="highest")
            value = jnp.sqrt(jnp.sum(jnp.abs(x) ** 2, axis=1))
            divisor = jnp.where(value > 0, value, 1.0).astype(x.dtype)
            return value, x / divisor[:, None]

        init = jnp.zeros(len(start), kernel.dtype), jnp.asarray(start, block.dtype)
        return loops.fori_loop(_POWER_STEPS, step, init)

    values, vectors = each_frequency(strongest, kernel, where, periodic)
    best = jnp.argmax(values, axis=0)
    fine = jnp.asarray(periodic.coarse, jnp.int32)[best][:, None] + aliases[None]
    places = np.indices(where.sizes, np.int32).reshape(len(where.sizes), -1).T
    steps = (fine[:, None] * places[None, :, None] % sizes[None, None]).astype(float)
    turns = jnp.sum(steps / sizes[None, None].astype(float), axis=-1)
    angle = (2 * math.pi * (turns - jnp.round(turns))).astype(kernel.dtype)
    top = vectors[best, jnp.arange(where.groups)]
    top = top.reshape(where.groups, len(aliases), -1)
    wave = jax.lax.complex(jnp.cos(angle), jnp.sin(angle))
    mode = jnp.einsum("gps,gsi->pgi", wave, top, precision="highest").real
    image = mode.reshape(where.in_shape)
    if not where.periodic:
        windows = [np.sin(np.pi * np.arange(1, n + 1) / (n + 1)) for n in where.sizes]
        image = image * _product(windows, kernel.dtype)[..., None]
    rough = _product([noise.standard_normal(n) for n in where.in_shape], kernel.dtype)
    return (image + 0.01 * jnp.sqrt(jnp.mean(image**2)) * rough)[None]


def _product(factors: Sequence[np.ndarray], dtype: DTypeLike) -> jax.Array:
    """The outer product of vectors."""
    grids = jnp.meshgrid(*(jnp.asarray(f, dtype) for f in factors), indexing="ij")
    return math.prod(grids[1:], start=grids[0])


def round_up(sizes: Sequence[int], strides: Sequence[int]) -> tuple[int, ...]:
    """Rounds each size up to a multiple of its stride."""
    return tuple(-(-n // s) * s for n, s in zip(sizes, strides, strict=True))
