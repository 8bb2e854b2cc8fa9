"""Largest slopes of scalar functions, such as activations, found on a grid."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

# Operations on each entry alone, with the largest absolute slope. Operations without a
# bound (exp) may still be parts of a function that has one (silu).
SLOPES = {
    "abs": 1.0,
    "asinh": 1.0,
    "atan": 1.0,
    "cos": 1.0,
    "copy": 1.0,
    "copy_p": 1.0,
    "erf": 2 / np.pi**0.5,
    "logistic": 0.25,
    "neg": 1.0,
    "reduce_precision": 1.0,
    "sin": 1.0,
    "stop_gradient": 1.0,
    "tanh": 1.0,
}
UNBOUNDED = frozenset(
    {
        *("exp", "exp2", "expm1", "log", "log1p", "sqrt", "rsqrt", "cbrt", "square"),
        *("integer_pow", "erfc", "erf_inv", "sinh", "cosh", "tan", "acosh", "lgamma"),
        *("digamma", "asin", "acos", "atanh"),
    }
)
# The grid is dense where activations bend. Its far ends show whether a slope grows.
_NEAR = np.linspace(-30.0, 30.0, 120001)
_FAR = np.geomspace(40.0, 1e4, 200)
_GRID = np.concatenate([-_FAR[::-1], _NEAR, _FAR]).astype(np.float32)
# Allowance for rounding, relative to the slope.
_ROUNDING = 1e-6
# A slope that is larger outside of the dense part by more than this fraction grows.
_GROWTH = 1e-2


def largest_slope(function: Callable[[jax.Array], jax.Array]) -> float:
    """Finds the largest absolute slope of a scalar function.

    Args:
      function: a function of an array, entry by entry, that JAX can trace.

    Returns:
      The largest slope on 120,401 points from -1e4 to 1e4, raised by its change to the
      nearer of the two next slopes and by 1e-6 of itself; inf for a function that
      jumps, whose slope is not finite, or whose slope grows by more than
      1 % outside of [-30, 30].
    """
    jaxpr = str(jax.make_jaxpr(function)(jnp.zeros((), jnp.float32)))
    return _measured(jaxpr, _Function(function))


class _Function:
    """A function that does not take part in comparisons of arguments."""

    def __init__(self, function: Callable[[jax.Array], jax.Array]) -> None:
        self.function = function

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Function)

    def __hash__(self) -> int:
        return 0


# Networks repeat one activation, and a program of it is compiled once.
@functools.lru_cache(maxsize=128)
def _measured(jaxpr: str, held: _Function) -> float:
    del jaxpr
    with jax.ensure_compile_time_eval():
        both = jax.jit(jax.vmap(jax.value_and_grad(held.function)))
        values, slopes = (np.asarray(a, np.float64) for a in both(_GRID))
    if not np.isfinite(slopes).all() or not np.isfinite(values).all():
        return float("inf")
    grid = _GRID.astype(np.float64)
    near = np.abs(grid) <= 30
    sizes, steps = np.abs(slopes[near]), np.diff(values[near])
    top = int(sizes.argmax())
    # Beside a kink the slope is continuous on one side at least.
    change = sizes[top] - max(
        sizes[max(top - 1, 0)], sizes[min(top + 1, len(sizes) - 1)]
    )
    largest = float(sizes[top] * (1 + _ROUNDING) + change)
    outside = float(np.abs(slopes[~near]).max()) * (1 + _ROUNDING)
    if outside > largest * (1 + _GROWTH):
        return float("inf")
    rounding = 1e-5 * (1 + np.abs(values[near][1:]))
    if np.any(np.abs(steps) > 2 * largest * np.diff(grid[near]) + rounding):
        return float("inf")
    return max(largest, outside)
