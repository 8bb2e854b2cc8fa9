"""linalg: a batch of linear maps, given by its products with vectors."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax


class LinearMap(NamedTuple):
    """B linear maps, one per example, as one block-diagonal map.

    Attributes:
      matvec: ``(B, *in_shape) -> (B, *out_shape)``, v -> A v.
      rmatvec: ``(B, *out_shape) -> (B, *in_shape)``, u -> A^T u.
      batch_size: B.
      in_shape: shape of one input, without the batch.
      out_shape: shape of one output, without the batch.
      dtype: of vectors on both sides.
      axes: mesh axes along which the maps differ, inside ``shard_map``.
    """

    matvec: Callable[[jax.Array], jax.Array]
    rmatvec: Callable[[jax.Array], jax.Array]
    batch_size: int
    in_shape: tuple[int, ...]
    out_shape: tuple[int, ...]
    dtype: Any
    axes: frozenset[str] = frozenset()

    @property
    def T(self) -> "LinearMap":
        """The transposed maps, A^T."""
        return LinearMap(
            self.rmatvec,
            self.matvec,
            self.batch_size,
            self.out_shape,
            self.in_shape,
            self.dtype,
            self.axes,
        )

    @property
    def in_size(self) -> int:
        """n, the number of inputs of each map."""
        return math.prod(self.in_shape)

    @property
    def out_size(self) -> int:
        """d, the number of outputs of each map."""
        return math.prod(self.out_shape)

    def spread(self, array: jax.Array) -> jax.Array:
        """``array``, marked as differing along the mesh axes of the maps.

        ``shard_map`` tells shared values from those of each device by their type, and
        a loop over a map has to start from the type that its body returns.
        """
        missing = tuple(self.axes - varying_axes(array))
        return lax.pcast(array, missing, to="varying") if missing else array

    def gram(self) -> "LinearMap":
        """Returns A^T A, a symmetric map on inputs."""
        return compose(self.T, self)

    def __matmul__(self, other: "LinearMap") -> "LinearMap":
        """The composition ``self @ other``: first other, then self."""
        return compose(self, other)


def compose(outer: LinearMap, inner: LinearMap) -> LinearMap:
    """Returns v -> outer(inner(v)), example by example.

    Raises:
      ValueError: if the shapes or batches do not fit.
    """
    if outer.in_shape != inner.out_shape or outer.batch_size != inner.batch_size:
        raise ValueError(
            f"outer takes {(outer.batch_size, *outer.in_shape)}, which must be what "
            f"inner returns, {(inner.batch_size, *inner.out_shape)}."
        )
    return LinearMap(
        lambda v: outer.matvec(inner.matvec(v)),
        lambda u: inner.rmatvec(outer.rmatvec(u)),
        inner.batch_size,
        inner.in_shape,
        outer.out_shape,
        inner.dtype,
        outer.axes | inner.axes,
    )


def from_matrix(matrix: jax.Array) -> LinearMap:
    """Returns the linear maps of dense matrices.

    Args:
      matrix: ``(B, d, n)`` float, or ``(d, n)`` for a batch of one.

    Raises:
      ValueError: for another rank or a dtype that is not float.
    """
    matrix = as_batch(matrix)
    batch, d, n = matrix.shape
    return LinearMap(
        # The default of some accelerators rounds float32 factors to 10 bits.
        lambda v: jnp.einsum("bdn,bn->bd", matrix, v, precision="highest"),
        lambda u: jnp.einsum("bdn,bd->bn", matrix, u, precision="highest"),
        batch,
        (n,),
        (d,),
        matrix.dtype,
        varying_axes(matrix),
    )


def varying_axes(array: jax.Array) -> frozenset[str]:
    """The mesh axes along which an array differs, inside ``shard_map``."""
    # Not in the documented interface: absent, loops outside shard_map still work.
    kind = getattr(jax.typeof(array), "manual_axis_type", None)
    return frozenset(getattr(kind, "varying", ()))


def as_batch(matrix: jax.Array) -> jax.Array:
    """Returns ``(d, n)`` or ``(B, d, n)`` as ``(B, d, n)``; ValueError otherwise."""
    matrix = jnp.asarray(matrix)
    if matrix.ndim not in (2, 3) or not jnp.issubdtype(matrix.dtype, jnp.floating):
        raise ValueError(
            f"matrix has shape {matrix.shape} and dtype {matrix.dtype}; it must be "
            "(d, n) or (B, d, n) and floating point."
        )
    if 0 in matrix.shape:
        raise ValueError(f"matrix has shape {matrix.shape}; it must not be empty.")
    return matrix if matrix.ndim == 3 else matrix[None]
