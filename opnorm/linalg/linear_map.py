"""A batch of linear maps, given by its products with vectors."""

import math
import numbers
from types import NotImplementedType
from typing import NamedTuple, overload

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike, DTypeLike

from opnorm.linalg import checks, norms, sampling
from opnorm.linalg.dtypes import at_least_single
from opnorm.linalg.types import Product


class LinearMap(NamedTuple):
    """B linear maps, one per example, as one block-diagonal map.

    Let M and N be maps of the same shapes, v a batch of vectors, and c a number or
    ``(B,)`` numbers, one for each map. Then ``M + N``, ``M - N``, ``-M`` and ``c * M``
    are maps, ``M @ N`` is the composition and ``M @ v`` is ``M.matvec(v)``. The sum
    ``M + c * identity(shape, dtype)`` is a shifted map.

    ``jax.flatten_util.ravel_pytree`` turns a map of trees into a map of vectors; see
    :func:`opnorm.operators.parameter_hessian`. A map that is written by hand should
    pass :func:`adjoint_error`.

    Attributes:
      matvec: ``(B, *in_shape) -> (B, *out_shape)``, the products A v.
      rmatvec: ``(B, *out_shape) -> (B, *in_shape)``, the products A^T u.
      batch_size: B.
      in_shape: shape of one input, without the batch.
      out_shape: shape of one output, without the batch.
      dtype: dtype of the vectors on both sides.
      axes: mesh axes along which the maps differ, inside ``shard_map``.

    Example:
      Differences of neighbouring entries, as a batch of two maps from 3 to 2 numbers:

      >>> import jax
      >>> import jax.numpy as jnp
      >>> from opnorm import linalg
      >>> def matvec(v):
      ...     return jnp.diff(v, axis=1)
      >>> def rmatvec(u):
      ...     return -jnp.diff(u, axis=1, prepend=0.0, append=0.0)
      >>> A = linalg.LinearMap(matvec, rmatvec, 2, (3,), (2,), jnp.float32)
      >>> print(A @ jnp.array([[0.0, 1.0, 4.0], [0.0, 2.0, 3.0]]))
      [[1. 3.]
       [2. 1.]]
      >>> error = linalg.adjoint_error(A, jax.random.key(0))
      >>> bool((error < 1e-6).all())
      True
    """

    matvec: Product
    rmatvec: Product
    batch_size: int
    in_shape: tuple[int, ...]
    out_shape: tuple[int, ...]
    dtype: DTypeLike
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
        """Marks ``array`` as differing along the mesh axes of the maps.

        The types of ``shard_map`` distinguish values that all devices share from values
        that differ. A loop over a map must start with the type that its body returns.
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

    def __matmul__(self, other: object) -> "LinearMap | jax.Array | NotImplementedType":
        """Composes two maps, the other one first, or multiplies vectors by this map.

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

    # The + and * of a tuple chain and repeat it, and Python would call them after
    # NotImplemented. So a TypeError is raised.
    def __add__(self, other: "LinearMap") -> "LinearMap":  # type: ignore[override]
        """Adds two maps; the dtypes are promoted.

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
        """Returns -A."""
        return -1 * self

    def __sub__(self, other: "LinearMap") -> "LinearMap":
        """Subtracts a map; raises what the sum raises."""
        return self + (-other)

    def __mul__(  # type: ignore[override]
        self, factor: ArrayLike
    ) -> "LinearMap":
        """Multiplies the maps by a real number, or by ``(B,)`` numbers.

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

    def __rmul__(  # type: ignore[override]
        self, factor: ArrayLike
    ) -> "LinearMap":
        """Multiplies the maps as :meth:`__mul__` does."""
        return self * factor


# With this, NumPy's numbers and arrays let the map compute a product with it.
LinearMap.__array_ufunc__ = None  # type: ignore[attr-defined]


def compose(outer: LinearMap, inner: LinearMap) -> LinearMap:
    """Composes two maps: ``v -> outer(inner(v))`` for each example.

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


def identity(shape: tuple[int, ...], dtype: DTypeLike) -> LinearMap:
    """Returns the identity, for instance to shift a map: ``A + 0.1 * identity(...)``.

    Args:
      shape: ``(B, ...)``, the shape of the vectors.
      dtype: the dtype of the vectors.

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
    """Measures how far ``rmatvec`` is from the adjoint of ``matvec`` (dot test).

    The error for random normal u and v is

        |<u, A v> - <A^T u, v>| / max(||A v||, ||A^T u||).

    If ``rmatvec`` multiplies by B^T for another matrix B, the root mean square of the
    error over keys is about ``||A - B||_F / max(||A||_F, ||B||_F)``. For an adjoint the
    error is rounding, a few times the machine epsilon.

    Args:
      linear_map: B maps. If ``rmatvec`` is ``matvec``, this tests whether the map is
        symmetric.
      key: typed key.

    Returns:
      ``(B,)``, at least float32: at least 0, 0 for a zero map, NaN for a map with NaN.

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
    wide = at_least_single(linear_map.dtype)
    v, u = (
        linear_map.spread(
            sampling.draw(jax.random.normal, k, shape, wide).astype(linear_map.dtype)
        )
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
    """Returns the mesh axes along which an array differs, inside ``shard_map``."""
    # The attributes are not documented. Without them, loops outside shard_map work.
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
