"""linalg: a batch of linear maps, given by its products with vectors."""

import math
import numbers
from collections.abc import Callable
from typing import Any, NamedTuple, overload

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from opnorm.linalg import checks, norms


class LinearMap(NamedTuple):
    """B linear maps, one per example, as one block-diagonal map.

    With maps A and B of the same shapes, numbers c (one, or ``(B,)`` of them, one for
    each map) and vectors v, ``A + B``, ``A - B``, ``-A`` and ``c * A`` are maps,
    ``A @ B`` is their composition and ``A @ v`` is ``A.matvec(v)``; a shifted map is
    ``A + c * identity(shape, dtype)``. A map of trees becomes one of vectors by
    ``jax.flatten_util.ravel_pytree``, as in
    :func:`opnorm.operators.parameter_hessian`. One written by hand should pass
    :func:`adjoint_error`.

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

    @overload
    def __matmul__(self, other: "LinearMap") -> "LinearMap": ...

    @overload
    def __matmul__(self, other: jax.Array) -> jax.Array: ...

    def __matmul__(self, other: Any) -> Any:
        """``self @ other``: first the other map, then self; or self of vectors.

        Raises:
          ValueError: for shapes that do not fit.
        """
        if isinstance(other, LinearMap):
            return compose(self, other)
        if not isinstance(other, np.ndarray | jax.Array):
            return NotImplemented
        shape = (self.batch_size, *self.in_shape)
        if other.shape != shape:
            raise ValueError(f"v has shape {other.shape}; it must be {shape}.")
        return self.matvec(jnp.asarray(other))

    # A tuple would chain and repeat itself, also after NotImplemented: hence TypeError.
    def __add__(self, other: "LinearMap") -> "LinearMap":  # type: ignore[override]
        """The sum of maps, in the dtype that theirs promote to.

        Raises:
          ValueError: for maps of other shapes.
        """
        if not isinstance(other, LinearMap):
            raise TypeError(
                f"a LinearMap and a {type(other).__name__} have no sum; a number c is "
                "added as c * identity(shape, dtype)."
            )
        shapes = [(m.batch_size, m.in_shape, m.out_shape) for m in (self, other)]
        if shapes[0] != shapes[1]:
            first, second = (f"{b} maps from {n} to {d}" for b, n, d in shapes)
            raise ValueError(f"{first} and {second} have no sum.")
        return LinearMap(
            lambda v: self.matvec(v) + other.matvec(v),
            lambda u: self.rmatvec(u) + other.rmatvec(u),
            self.batch_size,
            self.in_shape,
            self.out_shape,
            jnp.promote_types(self.dtype, other.dtype),
            self.axes | other.axes,
        )

    def __neg__(self) -> "LinearMap":
        """-A."""
        return -1 * self

    def __sub__(self, other: "LinearMap") -> "LinearMap":
        """The difference of maps; raises as their sum."""
        return self + (-other)

    def __mul__(self, factor: Any) -> "LinearMap":
        """The maps times a real number, or ``(B,)`` numbers, one for each map.

        Raises:
          ValueError: for a factor of another shape or a complex one.
        """
        if not isinstance(factor, numbers.Real | np.ndarray | jax.Array):
            raise TypeError(
                f"a LinearMap and a {type(factor).__name__} have no product with *; "
                "maps are composed, and applied to vectors, by @."
            )
        scale = jnp.asarray(factor)
        if scale.shape not in ((), (self.batch_size,)) or jnp.iscomplexobj(scale):
            raise ValueError(
                f"a factor of shape {scale.shape} and dtype {scale.dtype} was given; "
                f"it must be real and a scalar or ({self.batch_size},)."
            )
        return self._replace(
            matvec=lambda v: norms.scale(self.matvec(v), scale),
            rmatvec=lambda u: norms.scale(self.rmatvec(u), scale),
            axes=self.axes | varying_axes(scale),
        )

    def __rmul__(self, factor: Any) -> "LinearMap":
        """As :meth:`__mul__`."""
        return self * factor


# Has NumPy's numbers and arrays leave their products with a map to the map.
LinearMap.__array_ufunc__ = None  # type: ignore[attr-defined]


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


def identity(shape: tuple[int, ...], dtype: Any) -> LinearMap:
    """Returns the identity, such as to shift a map: ``A + 0.1 * identity(...)``.

    Args:
      shape: ``(B, ...)`` of the vectors.
      dtype: of the vectors.

    Raises:
      ValueError: for a shape without a batch, or a dtype that is not float.
    """
    if len(shape) < 1 or 0 in shape or not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(
            f"shape is {tuple(shape)} and dtype {jnp.dtype(dtype)}; the shape must be "
            "(B, ...) without zeros, and the dtype floating point."
        )
    batch, *rest = shape
    return LinearMap(
        lambda v: v, lambda u: u, batch, tuple(rest), tuple(rest), jnp.dtype(dtype)
    )


def adjoint_error(linear_map: LinearMap, key: jax.Array) -> jax.Array:
    """Measures how far ``rmatvec`` is from the adjoint of ``matvec``: a dot test.

    ``|<u, A v> - <A^T u, v>| / max(||A v||, ||A^T u||)`` for normal random u and v. If
    ``rmatvec`` belongs to another matrix B, its root mean square over keys is about
    ``||A - B||_F`` in units of the larger of ``||A||_F`` and ``||B||_F``; for an
    adjoint it is rounding, some eps of the dtype.

    Args:
      linear_map: B maps. A map that is said to be symmetric is tested for that if
        ``rmatvec`` is its ``matvec``.
      key: typed key.

    Returns:
      ``(B,)``, at least float32: at least 0, 0 for a zero map, NaN for one with NaN.

    Raises:
      ValueError: for products of a wrong shape, or a key that is not typed.

    Source: Claerbout 2014, Geophysical Image Estimation by Example, the dot-product
    test.
    """
    checks.check_key(key)
    into, out = (
        (linear_map.batch_size, *shape)
        for shape in (linear_map.in_shape, linear_map.out_shape)
    )
    wide = jnp.promote_types(linear_map.dtype, jnp.float32)
    v, u = (
        linear_map.spread(jax.random.normal(k, shape, wide).astype(linear_map.dtype))
        for k, shape in zip(jax.random.split(key), (into, out), strict=True)
    )
    image, pulled = linear_map.matvec(v), linear_map.rmatvec(u)
    for name, found, shape in (("matvec", image, out), ("rmatvec", pulled, into)):
        if found.shape != shape:
            raise ValueError(f"{name} returns shape {found.shape}; it must be {shape}.")
    size = jnp.maximum(norms.norm(image, 2.0), norms.norm(pulled, 2.0))
    gap = jnp.abs(norms.inner(u, image) - norms.inner(pulled, v))
    return gap / jnp.where(size == 0, 1.0, size)


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
