"""linalg: functions cut off from the gradients of whatever they close over."""

from collections.abc import Callable
from typing import Any

import jax
from jax import lax
from jax.extend import core as jex_core


def detach(f: Callable[..., Any], *example_args: Any) -> Callable[..., Any]:
    """Returns ``f`` with the arrays that it closes over held constant.

    A network closes over its parameters. When an attack or a power method runs inside
    a loss that is being differentiated, its many passes must not be recorded for the
    parameters' gradient: that would cost memory and time for a term that is zero by
    the envelope theorem, and a ``while_loop`` could not be differentiated at all.

    Args:
      f: a function of arrays.
      *example_args: arguments of the shapes and dtypes that it will be called with.

    Returns:
      A function with the values of ``f`` through which no gradient flows to closed-over
      arrays; it still has derivatives with respect to its arguments.
    """
    # A function of our own: what JAX has traced it knows again by the function's
    # identity, and what f closes over may have changed since.
    traced, shapes = jax.make_jaxpr(lambda *args: f(*args), return_shape=True)(
        *example_args
    )
    # Arrays that are no tracers carry no gradient.
    frozen = [
        lax.stop_gradient(constant)
        if isinstance(constant, jax.core.Tracer)
        else constant
        for constant in traced.consts
    ]
    closed = jex_core.jaxpr_as_fun(jex_core.ClosedJaxpr(traced.jaxpr, frozen))
    structure = jax.tree.structure(shapes)

    def detached(*args: Any) -> Any:
        return jax.tree.unflatten(structure, closed(*jax.tree.leaves(args)))

    return detached
