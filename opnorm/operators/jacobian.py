"""The Jacobian of a batch function at each example, as a map and as a matrix."""

import dataclasses
import functools
import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from opnorm import linalg
from opnorm.linalg import BatchFunction
from opnorm.linalg.linear_map import varying_axes


def jacobian_map(f: BatchFunction, x: jax.Array) -> linalg.LinearMap:
    """Returns the Jacobians ``J_f(x_i)`` as one block-diagonal linear map.

    ``f`` is linearised once; each product then costs about one forward pass. A function
    with reverse mode alone (``jax.custom_vjp``) is enough: ``matvec`` then transposes
    its backward function, and only ``rmatvec`` is there if JAX cannot do that, as with
    a callback.

    Args:
      f: batch function ``(B, ...) -> (B, d)`` with independent rows.
      x: ``(B, ...)`` float, in [0, 1] pixel units.

    Returns:
      The map from perturbations ``(B, ...)`` to changes of the outputs ``(B, d)``.

    Raises:
      ValueError: for an x that is not float or has no batch axis or no example, or an f
        that does not return ``(B, d)`` float with d at least 1.

    Source: Roth et al. 2020, Eqs. 1-2.

    Example:
      Products with the Jacobian of ``x -> relu(x W)`` at one example:

      >>> import jax
      >>> import jax.numpy as jnp
      >>> from opnorm import operators
      >>> weights = jnp.array([[1.0, 0.0], [0.0, 2.0], [0.0, 0.0]])
      >>> f = jax.tree_util.Partial(lambda w, x: jax.nn.relu(x @ w), weights)
      >>> x = jnp.full((1, 3), 0.5)
      >>> J = operators.jacobian_map(f, x)
      >>> print(J.matvec(jnp.ones((1, 3))), J.in_shape, J.out_shape)
      [[1. 2.]] (3,) (2,)
    """
    d = check(f, x)
    axes = varying_axes(x)
    out, push = jax.linearize(f, x)
    pull = jax.linear_transpose(push, x)

    def rmatvec(u: jax.Array) -> jax.Array:
        gradient: jax.Array = pull(linear_map.spread(u.astype(out.dtype)))[0]
        return gradient

    linear_map = linalg.LinearMap(
        Forward(f, x, out, push, lambda v: linear_map.spread(v)),
        rmatvec,
        x.shape[0],
        x.shape[1:],
        (d,),
        x.dtype,
        axes,
    )
    return linear_map


@dataclasses.dataclass(frozen=True)
class Forward:
    """Products ``J v`` of a linearised function; a :class:`LinearMap`'s ``matvec``.

    Attributes:
      f: the function.
      x: where it is linearised.
      out: ``f(x)``.
      push: the linear function that ``jax.linearize`` returned.
      spread: marks a vector as differing along the mesh axes of the maps.
    """

    f: BatchFunction
    x: jax.Array
    out: jax.Array
    push: BatchFunction
    spread: BatchFunction

    def __call__(self, v: jax.Array) -> jax.Array:
        """Computes ``J v``."""
        if self.mode == "forward":
            return self._push(v)
        if self.mode == "transposed":
            return self._transpose(v)
        raise ValueError(
            "f has reverse mode alone, and JAX cannot transpose its backward function, "
            "such as a callback, so there are no products J v; method='dense' needs "
            "none, and jax.custom_jvp makes them."
        )

    @functools.cached_property
    def mode(self) -> str:
        """How the products are computed: "forward", "transposed" or "none"."""
        v = jax.ShapeDtypeStruct(self.x.shape, self.x.dtype)
        # JAX's mark of a function under jax.custom_vjp. It can be transposed and not
        # evaluated, which shows only when a program is compiled.
        if not _mentions(jax.make_jaxpr(self._push)(v), "custom_lin"):
            return "forward"
        try:
            jax.eval_shape(self._transpose, v)
        except (TypeError, ValueError, NotImplementedError):
            return "none"
        return "transposed"

    def _push(self, v: jax.Array) -> jax.Array:
        return self.push(self.spread(v.astype(self.x.dtype)))

    def _transpose(self, v: jax.Array) -> jax.Array:
        """The transposed map of the backward function, which is linear."""
        _, backward = jax.vjp(self.f, self.x)
        (change,) = jax.linear_transpose(lambda u: backward(u)[0], self.out)(
            self.spread(v.astype(self.x.dtype))
        )
        product: jax.Array = change
        return product


def _mentions(jaxpr: Any, name: str) -> bool:
    """Whether a jaxpr, or one inside it, has a primitive of this name."""
    for eqn in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        if eqn.primitive.name == name:
            return True
        for value in eqn.params.values():
            for part in value if isinstance(value, tuple | list) else (value,):
                if hasattr(getattr(part, "jaxpr", part), "eqns") and _mentions(
                    part, name
                ):
                    return True
    return False


def directional_derivative(f: BatchFunction, x: jax.Array, v: jax.Array) -> jax.Array:
    """Computes ``J_f(x) v`` by one forward-mode pass.

    Args:
      f: batch function ``(B, ...) -> (B, d)``.
      x: ``(B, ...)`` float.
      v: an array with the shape of ``x``.

    Returns:
      ``(B, d)``.

    Raises:
      ValueError: for a v of another shape, and as :func:`jacobian_map`.
    """
    check(f, x)
    if v.shape != x.shape:
        raise ValueError(f"v has shape {v.shape}; it must have that of x, {x.shape}.")
    change: jax.Array = jax.jvp(f, (x,), (v.astype(x.dtype),))[1]
    return change


def dense_jacobian(
    f: BatchFunction, x: jax.Array, *, max_bytes: int = 2**30
) -> jax.Array:
    """Computes the dense Jacobian of each example.

    The cost is d transposed passes, or n forward passes if n < d and f has forward
    mode. The passes run one after the other, so the working memory is the memory of one
    pass.

    If f is a callable pytree, such as :func:`opnorm.models.network` returns, it is
    compiled once for all such networks. A plain function is compiled in each call.

    Args:
      f: batch function ``(B, ...) -> (B, d)`` with independent rows.
      x: ``(B, ...)`` float.
      max_bytes: largest allowed size of the result.

    Returns:
      ``(B, d, *x.shape[1:])`` in the dtype of x.

    Raises:
      ValueError: if the result would be larger (use :func:`dense_jacobian_chunks`),
        and as :func:`jacobian_map`.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from opnorm import operators
      >>> weights = jnp.array([[1.0, 0.0], [0.0, 2.0], [0.0, 0.0]])
      >>> f = jax.tree_util.Partial(lambda w, x: jax.nn.relu(x @ w), weights)
      >>> print(operators.dense_jacobian(f, jnp.full((1, 3), 0.5)))
      [[[1. 0. 0.]
        [0. 2. 0.]]]
    """
    d = check(f, x)
    needed = d * x.size * x.dtype.itemsize
    if needed > max_bytes:
        raise ValueError(
            f"max_bytes is {max_bytes}, and the Jacobian of shape "
            f"{(x.shape[0], d, *x.shape[1:])} has {needed} bytes; "
            "dense_jacobian_chunks computes it piece by piece."
        )
    matrix = _dense(f, x)
    return matrix.reshape(x.shape[0], d, *x.shape[1:])


@linalg.network_program
def _dense(f: BatchFunction, x: jax.Array) -> jax.Array:
    return materialize(jacobian_map(f, x))


def dense_jacobian_chunks(
    f: BatchFunction, x: jax.Array, *, max_bytes: int = 2**30
) -> Iterator[tuple[slice, np.ndarray]]:
    """Computes dense Jacobians of a few examples at a time, on the host.

    Args:
      f: batch function ``(B, ...) -> (B, d)`` with independent rows, for any B.
      x: ``(B, ...)`` float.
      max_bytes: largest allowed size of one piece.

    Yields:
      A slice of the batch and the Jacobians of its examples, ``(b, d, *x.shape[1:])``.
      All pieces except the last have the same size; one program is compiled.

    Raises:
      ValueError: if one example needs more than ``max_bytes``, and as
        :func:`jacobian_map`.
    """
    d = check(f, x)
    one = d * math.prod(x.shape[1:]) * x.dtype.itemsize
    if one > max_bytes:
        raise ValueError(
            f"max_bytes is {max_bytes}; the Jacobian of one example has {one} bytes."
        )
    size = min(len(x), max_bytes // one)
    prepared = linalg.prepare_network(f)

    def pieces() -> Iterator[tuple[slice, np.ndarray]]:
        for start in range(0, len(x), size):
            stop = min(start + size, len(x))
            # The last piece is padded with its last example, to keep its shape.
            rows = np.minimum(np.arange(start, start + size), len(x) - 1)
            found = dense_jacobian(prepared, x[rows], max_bytes=max_bytes)
            yield slice(start, stop), np.asarray(found)[: stop - start]

    return pieces()


def materialize(linear_map: linalg.LinearMap) -> jax.Array:
    """Computes the matrices ``(B, d, n)`` of a batch of maps, pass by pass."""
    batch, dtype = linear_map.batch_size, linear_map.dtype
    d, n = linear_map.out_size, linear_map.in_size
    backward = d <= n or not has_matvec(linear_map)
    count, size = (d, n) if backward else (n, d)
    apply = linear_map.rmatvec if backward else linear_map.matvec
    shape = linear_map.out_shape if backward else linear_map.in_shape

    def body(i: jax.Array, matrix: jax.Array) -> jax.Array:
        basis = jnp.broadcast_to(jax.nn.one_hot(i, count, dtype=dtype), (batch, count))
        line = apply(basis.reshape(batch, *shape)).reshape(batch, size).astype(dtype)
        # Lines are set in place, since a transpose at the end would need a second copy.
        return matrix.at[(slice(None), i) if backward else (..., i)].set(line)

    empty = linear_map.spread(jnp.zeros((batch, d, n), dtype))
    return linalg.fori_loop(count, body, empty)


def has_matvec(linear_map: linalg.LinearMap) -> bool:
    """Tells whether a map from :func:`jacobian_map` has products ``J v``."""
    return getattr(linear_map.matvec, "mode", "forward") != "none"


def has_forward_mode(linear_map: linalg.LinearMap) -> bool:
    """Tells whether the function of a map from :func:`jacobian_map` has a JVP."""
    return getattr(linear_map.matvec, "mode", "forward") == "forward"


def check(f: BatchFunction, x: jax.Array) -> int:
    """Returns d, or raises ValueError if f and x break the contract."""
    check_input(x)
    out = linalg.output_shapes(f, x)
    if (
        len(getattr(out, "shape", ())) != 2
        or out.shape[0] != x.shape[0]
        or out.shape[1] == 0
        or not jnp.issubdtype(out.dtype, jnp.floating)
    ):
        raise ValueError(
            f"f returns {out}; it must return a floating point array of shape "
            f"({x.shape[0]}, d), d at least 1."
        )
    return int(out.shape[1])


def check_input(x: jax.Array) -> None:
    """Raises ValueError unless x is a floating point batch."""
    linalg.check_array("x", x)
    if not hasattr(x, "dtype") or not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(
            f"x has dtype {getattr(x, 'dtype', type(x))}; it must be floating point "
            "(pixels in [0, 1])."
        )
    if x.ndim < 2:
        raise ValueError(
            f"x has shape {x.shape}, and a batch axis is missing; it must be (B, ...), "
            "for one example x[None]."
        )
    if x.size == 0:
        raise ValueError(
            f"x has shape {x.shape}; it must be (B, ...) with at least one example."
        )
