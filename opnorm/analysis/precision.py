"""Programs whose matrix products are not rounded to fewer digits than their dtype."""

from collections.abc import Callable
from typing import TypeVar

import jax

from opnorm import linalg
from opnorm.linalg import NetworkProgram

R = TypeVar("R")


def exact_program(fun: Callable[..., R]) -> NetworkProgram[R]:
    """Compiles ``fun(f, *arrays, **options)`` with matrix products of full precision.

    The Lanczos process needs them: rounded products with a Hessian would not be those
    of a symmetric matrix. Apart from that it is :func:`opnorm.linalg.network_program`.
    """
    exact: Callable[..., R] = jax.default_matmul_precision("highest")(fun)
    return linalg.network_program(exact)
