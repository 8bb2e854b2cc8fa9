"""A JAX primitive that computes a PyTorch module and its derivatives on the host.

With f the module, the primitive computes, for arrays x, v, w like its input and u like
its output:

========  =============  ===========================================
kind      arguments      result
========  =============  ===========================================
apply     x              f(x)
push      x, v           J(x) v
pull      x, u           J(x)^T u
curve     x, u, v        H_u(x) v, with H_u the Hessian of <u, f(x)>
bend      x, v, w        the second derivative of f in v and w
========  =============  ===========================================

Each kind after the first is linear in all arguments but x. The derivatives and the
transposes of the kinds are kinds again, except for third derivatives.
"""

import functools
import os
from collections.abc import Callable, Hashable, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend import core as jex_core
from jax.interpreters import ad, batching, mlir

from opnorm.linalg.linear_map import varying_axes
from opnorm.linalg.typed import shape_dtype

# The kind of the derivative in x, of each kind.
_DERIVATIVES = {"apply": "push", "push": "bend", "pull": "curve"}
# The kinds whose result is like the input; that of the others is like the output.
_LIKE_INPUT = ("pull", "curve")
# An array, or JAX's mark for an argument or tangent that is not there.
_Operand = Any
# JAX gives these no types.
_spec: Callable[..., jax.P] = jax.P
_is_unknown: Callable[[_Operand], bool] = ad.is_undefined_primal


def give_callbacks_a_thread() -> None:
    """Gives JAX two threads on one core, if it has not started yet.

    A callback runs on a thread of JAX and may wait there for a copy of its arguments,
    which needs another thread; a program was seen to wait for ever. The variable
    ``PJRT_NPROC`` of a user stays as it is.
    """
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    if cores == 1:
        os.environ.setdefault("PJRT_NPROC", "2")


class Host(Protocol):
    """The other side: a hashable object that computes with NumPy arrays."""

    def compute(self, kind: str, *args: np.ndarray) -> np.ndarray:
        """Computes one kind for a batch."""
        ...


def call(
    *args: jax.Array, host: Host, kind: str, row_shape: tuple[int, ...]
) -> jax.Array:
    """Computes one kind.

    Args:
      *args: the kind's arguments, ``(B, ...)``, of one dtype, float32 or float64.
      host: computes it. Equal hosts share programs.
      kind: a name in the table above.
      row_shape: shape of an output of f, without the batch.
    """
    axes = frozenset().union(*map(varying_axes, args))
    # All arguments differ along the same mesh axes, inside shard_map.
    alike = [
        lax.pcast(arg, missing, to="varying")
        if (missing := tuple(axes - varying_axes(arg)))
        else arg
        for arg in args
    ]
    out: jax.Array = _primitive()(*alike, host=host, kind=kind, row_shape=row_shape)
    return out


@functools.cache
def _primitive() -> Callable[..., jax.Array]:
    # JAX gives no types to the functions that make a primitive.
    new: Callable[..., Any] = jex_core.Primitive
    primitive = new("torch_call")
    compiled = jax.jit(primitive.bind, static_argnames=("host", "kind", "row_shape"))

    def evaluate(*args: jax.Array, **params: Hashable) -> jax.Array:
        with jax.disable_jit(False):
            out: jax.Array = compiled(*args, **params)
        return out

    primitive.def_impl(evaluate)
    primitive.def_abstract_eval(_abstract)
    ad.primitive_jvps[primitive] = _jvp
    ad.primitive_transposes[primitive] = _transpose
    batching.primitive_batchers[primitive] = _batch
    mlir.register_lowering(primitive, mlir.lower_fun(_on_host, multiple_results=False))
    bind: Callable[..., jax.Array] = primitive.bind
    return bind


def _abstract(
    x: Any, *linear: Any, host: Host, kind: str, row_shape: tuple[int, ...]
) -> jax.core.ShapedArray:
    shape = x.shape if kind in _LIKE_INPUT else (x.shape[0], *row_shape)
    if not getattr(getattr(x, "manual_axis_type", None), "varying", None):
        return jax.core.ShapedArray(shape, x.dtype)
    # Inside shard_map the result differs along the mesh axes of the arguments.
    spec = _spec(*[None] * len(shape))
    aval: jax.core.ShapedArray = x.update(
        shape=shape, sharding=x.sharding.update(spec=spec)
    )
    return aval


def _on_host(
    *args: jax.Array, host: Host, kind: str, row_shape: tuple[int, ...]
) -> jax.Array:
    x = args[0]
    shape = x.shape if kind in _LIKE_INPUT else (x.shape[0], *row_shape)

    if x.dtype != jnp.float64:

        def compute(*arrays: Any) -> np.ndarray:
            return host.compute(kind, *map(np.asarray, arrays))

        out: jax.Array = jax.pure_callback(compute, shape_dtype(shape, x.dtype), *args)
        return out

    # Under the context manager jax.enable_x64, the thread that calls back does not have
    # the setting and would round float64 numbers to float32. It passes integers on.
    def compute_words(*arrays: Any) -> np.ndarray:
        numbers = [np.asarray(array).view(np.float64)[..., 0] for array in arrays]
        return host.compute(kind, *numbers)[..., None].view(np.uint32)

    words: jax.Array = jax.pure_callback(
        compute_words,
        shape_dtype((*shape, 2), jnp.uint32),
        *(lax.bitcast_convert_type(arg, jnp.uint32) for arg in args),
    )
    return lax.bitcast_convert_type(words, jnp.float64)


def _jvp(
    primals: Sequence[jax.Array],
    tangents: Sequence[_Operand],
    *,
    kind: str,
    **params: Any,
) -> tuple[jax.Array, jax.Array]:
    """The derivative, by the product rule over the arguments."""
    terms = []
    for place, tangent in enumerate(tangents):
        if isinstance(tangent, ad.Zero):
            continue
        if place:
            moved = [*primals[:place], tangent, *primals[place + 1 :]]
            terms.append(call(*moved, kind=kind, **params))
        elif kind in _DERIVATIVES:
            terms.append(call(*primals, tangent, kind=_DERIVATIVES[kind], **params))
        else:
            raise ValueError(
                "a third derivative of a PyTorch module is asked for; from_torch has "
                "first and second ones."
            )
    out = call(*primals, kind=kind, **params)
    # The rule is called where at least one tangent is not zero.
    return out, functools.reduce(jnp.add, terms)


def _transpose(
    cotangent: _Operand,
    x: jax.Array,
    *linear: _Operand,
    kind: str,
    **params: Any,
) -> tuple[_Operand, ...]:
    """The transposed map, in the one linear argument that is not known."""
    (place,) = [i for i, arg in enumerate(linear) if _is_unknown(arg)]
    if isinstance(cotangent, ad.Zero):
        return (None,) * (1 + len(linear))
    others = [arg for i, arg in enumerate(linear) if i != place]
    if kind in ("push", "pull"):
        turned, args = "pull" if kind == "push" else "push", [cotangent]
    elif kind == "curve" and place == 0:
        turned, args = "bend", [*others, cotangent]
    elif kind == "curve":
        turned, args = "curve", [*others, cotangent]
    else:
        turned, args = "curve", [cotangent, *others]
    pulled = call(x, *args, kind=turned, **params)
    return (None, *(pulled if i == place else None for i in range(len(linear))))


def _batch(
    args: Sequence[jax.Array], axes: Sequence[int | None], **params: Any
) -> tuple[jax.Array, int]:
    """``vmap`` is one longer batch, because rows do not depend on each other."""
    count = next(
        arg.shape[axis]
        for arg, axis in zip(args, axes, strict=True)
        if axis is not None
    )
    merged = []
    for arg, axis in zip(args, axes, strict=True):
        spread = (
            jnp.broadcast_to(arg, (count, *arg.shape))
            if axis is None
            else jnp.moveaxis(arg, axis, 0)
        )
        merged.append(spread.reshape(-1, *spread.shape[2:]))
    out = call(*merged, **params)
    return out.reshape(count, -1, *out.shape[1:]), 0
