"""linalg: functions cut off from the gradients of whatever they close over."""

from collections.abc import Callable
from typing import Any

import jax
from jax import lax


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
    closed, constants = jax.closure_convert(f, *example_args)
    frozen = [lax.stop_gradient(constant) for constant in constants]
    return lambda *args: closed(*args, *frozen)
