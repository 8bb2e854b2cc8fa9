"""Functions through which no gradient flows to the arrays that they close over."""

from collections.abc import Callable
from typing import TypeVar

import jax
from jax import lax
from jax.extend import core as jex_core

from opnorm.linalg.types import PyTree

R = TypeVar("R")


def detach(f: Callable[..., R], *example_args: PyTree) -> Callable[..., R]:
    """Returns ``f`` with the arrays that it closes over held constant.

    A network closes over its parameters. Where an attack or a power method runs inside
    a loss that is being differentiated, its many passes must not be recorded for the
    gradient in the parameters. Recording them would cost memory and time for a term
    that is zero by the envelope theorem, and a ``while_loop`` could not be
    differentiated at all.

    Args:
      f: a function of arrays.
      *example_args: arguments with the shapes and dtypes of all later calls.

    Returns:
      A function with the values of ``f``. No gradient flows through it to the arrays
      that ``f`` closes over; its derivatives in its arguments are those of ``f``.
    """
    # JAX keeps traces by the identity of a function. A new function is traced again,
    # which is needed because the arrays that f closes over may have changed.
    traced, shapes = jax.make_jaxpr(lambda *args: f(*args), return_shape=True)(
        *example_args
    )
    # Only tracers carry gradients.
    frozen = [
        lax.stop_gradient(constant)
        if isinstance(constant, jax.core.Tracer)
        else constant
        for constant in traced.consts
    ]
    closed = jex_core.jaxpr_as_fun(jex_core.ClosedJaxpr(traced.jaxpr, frozen))
    structure = jax.tree.structure(shapes)

    def detached(*args: PyTree) -> R:
        result: R = jax.tree.unflatten(structure, closed(*jax.tree.leaves(args)))
        return result

    return detached
