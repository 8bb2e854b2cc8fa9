"""Loops over a network that are fast on every backend.

Every loop whose body evaluates a network uses this module.

On CPU, XLA brings a convolution into its fast form only in the entry computation of a
program. The same convolution inside ``fori_loop`` or ``while_loop`` is tens of times
slower (jax issue 12868). The convolutions of a derivative are the slowest, because they
never have the fast layout.

Here the body is traced, and every convolution in it is rewritten into the fast layout
(NHWC images, HWIO kernel) between explicit transposes. The loop over the rewritten body
is as fast as unrolled code and has the compile time of one step.

``opnorm/linalg/convolution_forms.py`` has further forms of convolutions that XLA:CPU is
slow at.

Other backends accept any layout; loops are not rewritten there.

The rewriting reads a jaxpr through ``jax.extend``, which JAX's compatibility policy
does not cover. With ``OPNORM_LOOPS=unroll`` nothing is rewritten: static loops are
unrolled and dynamic loops stay as they are. With ``OPNORM_LOOPS=plain`` all loops stay
as they are.
"""

import os
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
from jax import lax
from jax.extend import core as jex_core

from opnorm.linalg import convolution_forms
from opnorm.linalg.types import PyTree

Carry = TypeVar("Carry")
R = TypeVar("R")
# A jaxpr, closed or not; JAX gives no public type to both.
Jaxpr = Any

# Operations that call a program, and the name of the parameter that holds it.
CALLS = {"jit": "jaxpr", "pjit": "jaxpr", "custom_jvp_call": "call_jaxpr"}
CALLS |= {"custom_vjp_call": "call_jaxpr", "custom_vjp_call_jaxpr": "fun_jaxpr"}
CALLS |= {"checkpoint": "jaxpr", "remat2": "jaxpr", "closed_call": "call_jaxpr"}


def fori_loop(
    num_steps: int, body: Callable[[jax.Array, Carry], Carry], init: Carry
) -> Carry:
    """Applies ``carry = body(step, carry)`` for the steps 0 to ``num_steps - 1``.

    Args:
      num_steps: how often the body runs; a Python int, at least 0.
      body: ``(step, carry) -> carry`` with a carry of constant structure, shapes and
        dtypes; ``step`` is an int32 scalar.
      init: the first carry, any pytree of arrays.

    Returns:
      The last carry.
    """
    if num_steps == 0:
        return init
    unroll = num_steps if _mode() == "unroll" else 1
    last: Carry = lax.fori_loop(
        0, num_steps, fast_convolutions(body), init, unroll=unroll
    )
    return last


def while_loop(
    cond: Callable[[Carry], jax.Array], body: Callable[[Carry], Carry], init: Carry
) -> Carry:
    """Applies ``body`` to the carry while ``cond(carry)`` holds.

    Args:
      cond: ``carry -> bool`` scalar; it may not evaluate a network.
      body: ``carry -> carry`` of constant structure, shapes and dtypes.
      init: the first carry, any pytree of arrays.

    Returns:
      The first carry for which ``cond`` is false. Not reverse-differentiable.
    """
    return lax.while_loop(cond, fast_convolutions(body), init)


def canonicalize_convolutions(fun: Callable[..., R]) -> Callable[..., R]:
    """Returns ``fun`` with every convolution written as NHWC x HWIO -> NHWC.

    The values are the same, and the transposes are explicit operations. Apply it after
    differentiation, since the convolutions of derivatives need it.

    Args:
      fun: a function of pytrees of arrays that can be traced.

    Returns:
      A function with the arguments and results of ``fun``.
    """

    def canonical(*args: PyTree) -> R:
        # A new function, as in detach: JAX would not trace fun again.
        traced, shapes = jax.make_jaxpr(lambda *a: fun(*a), return_shape=True)(*args)
        if not _has_convolution(traced):
            return fun(*args)
        outputs = _evaluate(traced, jax.tree.leaves(args))
        result: R = jax.tree.unflatten(jax.tree.structure(shapes), outputs)
        return result

    return canonical


def fast_convolutions(fun: Callable[..., R]) -> Callable[..., R]:
    """Returns ``fun`` with convolutions that are fast on this backend.

    The result is :func:`canonicalize_convolutions` of ``fun`` on CPU, unless
    ``OPNORM_LOOPS`` turns that off, and ``fun`` itself on other backends. Loops apply
    this function to their bodies. Outside of loops it makes derivatives faster.

    Args:
      fun: a function of pytrees of arrays that can be traced.
    """
    return canonicalize_convolutions(fun) if _mode() == "rewrite" else fun


def _mode() -> str:
    mode = os.environ.get("OPNORM_LOOPS", "rewrite")
    if mode not in ("rewrite", "unroll", "plain"):
        raise ValueError(
            f"OPNORM_LOOPS is {mode!r}; it may be 'rewrite', 'unroll' or 'plain'."
        )
    return mode if jax.default_backend() == "cpu" else "plain"


def open_jaxpr(jaxpr: Jaxpr) -> tuple[Jaxpr, Sequence[jax.Array]]:
    """The open jaxpr and its constants; ``jaxpr`` may be closed or open."""
    return getattr(jaxpr, "jaxpr", jaxpr), getattr(jaxpr, "consts", ())


def _has_convolution(jaxpr: Jaxpr) -> bool:
    opened, _ = open_jaxpr(jaxpr)
    return any(
        eqn.primitive is jex_core.primitives.conv_general_dilated_p
        or (
            (name := CALLS.get(eqn.primitive.name)) is not None
            and _has_convolution(eqn.params[name])
        )
        for eqn in opened.eqns
    )


def _evaluate(jaxpr: Jaxpr, args: Sequence[jax.Array]) -> list[jax.Array]:
    opened, consts = open_jaxpr(jaxpr)
    values = dict(zip(opened.constvars, consts, strict=True))
    values |= dict(zip(opened.invars, args, strict=True))

    def read(atom: jex_core.Var | jex_core.Literal) -> jax.Array:
        found: jax.Array = (
            atom.val if isinstance(atom, jex_core.Literal) else values[atom]
        )
        return found

    for eqn in opened.eqns:
        inputs = [read(atom) for atom in eqn.invars]
        inner = eqn.params.get(CALLS.get(eqn.primitive.name, ""))
        with eqn.ctx.manager:
            if eqn.primitive is jex_core.primitives.conv_general_dilated_p:
                outputs = [_convolve(*inputs, **eqn.params)]
            elif inner is not None and _has_convolution(inner):
                outputs = _evaluate(inner, inputs)
            else:
                outputs = eqn.primitive.bind(
                    *inputs, **eqn.primitive.get_bind_params(eqn.params)
                )
                if not eqn.primitive.multiple_results:
                    outputs = [outputs]
        values |= dict(zip(eqn.outvars, outputs, strict=True))
    return [read(atom) for atom in opened.outvars]


def _convolve(
    lhs: jax.Array,
    rhs: jax.Array,
    *,
    dimension_numbers: lax.ConvDimensionNumbers,
    **params: PyTree,
) -> jax.Array:
    lhs_spec, rhs_spec, out_spec = dimension_numbers
    rank = lhs.ndim
    # Each spec lists the dimensions of (N, C, spatial) or (O, I, spatial).
    last_channel = (0, rank - 1, *range(1, rank - 1))
    kernel_last = (rank - 1, rank - 2, *range(rank - 2))
    canonical = lax.ConvDimensionNumbers(last_channel, kernel_last, last_channel)
    params.pop("lhs_shape", None)
    params.pop("rhs_shape", None)
    images = lax.transpose(lhs, _inverse_gather(lhs_spec, last_channel))
    kernel = lax.transpose(rhs, _inverse_gather(rhs_spec, kernel_last))
    out = convolution_forms.convolve(
        images, kernel, {**params, "dimension_numbers": canonical}
    )
    return lax.transpose(out, _inverse_gather(last_channel, out_spec))


def _inverse_gather(source: Sequence[int], target: Sequence[int]) -> tuple[int, ...]:
    """The permutation that moves dimension ``source[i]`` to place ``target[i]``."""
    permutation = [0] * len(source)
    for place, dimension in zip(target, source, strict=True):
        permutation[place] = dimension
    return tuple(permutation)
