"""Checks of the labels, inputs and options that attacks take."""

import math
import numbers

import jax
import jax.numpy as jnp
import numpy as np

from opnorm import linalg

Bounds = tuple[float, float] | None


def known(array: object) -> bool:
    """Whether the values are at hand: not traced, nor on devices of other processes."""
    if isinstance(array, jax.core.Tracer):
        return False
    return not isinstance(array, jax.Array) or array.is_fully_addressable


def check_inside(x: jax.Array | np.ndarray, bounds: Bounds, name: str = "x") -> bool:
    """Raises ValueError unless x is in the box, where it is :func:`known`.

    Clipping an input from outside into the box would leave the budget. Rounding, a
    millionth of the bounds, is allowed. The error calls the input ``name``.

    Returns:
      Whether it is known that clipping changes no entry of x.
    """
    if bounds is None:
        return True
    if not known(x):
        return False
    low, high = float(x.min()), float(x.max())
    slack = 1e-6 * max(map(abs, bounds))
    if low < bounds[0] - slack or high > bounds[1] + slack:
        bytes_ = high > 2 and tuple(bounds) == (0, 1)
        remedy = "divide bytes by 255" if bytes_ else "give values in these units"
        raise ValueError(
            f"{name} has values from {low:g} to {high:g}, outside of the bounds "
            f"{tuple(bounds)}; {remedy}, or give other bounds and, in the units of "
            f"{name}, other lengths."
        )
    return bounds[0] <= low and high <= bounds[1]


def check_labels(
    labels: jax.Array | np.ndarray, count: int, logits: object = None
) -> None:
    """Raises ValueError unless labels are ``(count,)`` ints and classes of the network.

    A network of one logit has one class, and no decision that could be wrong: it is
    refused whatever the labels are.

    Args:
      labels: array.
      count: how many there must be.
      logits: ``(B, K)``, an array or its shape and dtype; None where it is not known.
        The classes are checked where the labels are :func:`known`.
    """
    if labels.shape != (count,) or not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ValueError(
            f"labels has shape {labels.shape} and dtype {labels.dtype}; it must be "
            f"({count},) and integer."
        )
    if logits is None:
        return
    shape = getattr(logits, "shape", type(logits))
    if not isinstance(shape, tuple) or len(shape) != 2:
        raise ValueError(f"the logits have shape {shape}; it must be (B, K).")
    check_classes(shape[1])
    if count and known(labels):
        values, classes = np.asarray(labels), shape[1]
        low, high = values.min(), values.max()
        if low < 0 or high >= classes:
            raise ValueError(
                f"labels has values from {low} to {high}; the network has {classes} "
                f"classes, so they must be from 0 to {classes - 1}."
            )


def check_classes(count: int) -> None:
    """Raises ValueError unless a network has at least two logits."""
    if count < 2:
        raise ValueError(
            f"the network has {count} logit; labels need at least 2, one for each "
            "class. For a binary network of one logit z, with class 1 where z > 0, "
            "return jnp.concatenate([jnp.zeros_like(z), z], axis=1)."
        )


def check_per_example(name: str, value: float | jax.Array, count: int) -> None:
    """Raises ValueError unless an option is a scalar or has one value per example.

    Args:
      name: what the error calls the option.
      value: a number or an array, may be traced.
      count: B.
    """
    shape = np.shape(value)
    if shape not in ((), (1,), (count,)):
        raise ValueError(
            f"{name} has shape {shape}; it must be a scalar or ({count},), one value "
            "for each example."
        )


def check_bounds(bounds: Bounds) -> None:
    """Raises ValueError unless the bounds are None or two numbers, low < high."""
    if bounds is None:
        return
    allowed = "it must be two numbers (low, high) with low < high, or None"
    if not isinstance(bounds, tuple | list) or len(bounds) != 2:
        raise ValueError(f"bounds is {bounds!r}; {allowed}.")
    if not all(map(_is_number, bounds)):
        given = ", ".join(
            f"an array of shape {np.shape(bound)}"
            if hasattr(bound, "shape")
            else repr(bound)
            for bound in bounds
        )
        raise ValueError(
            f"bounds is ({given}); {allowed}: one box for all entries of x. Bounds of "
            "single features are not supported, and traced ones neither."
        )
    if not bounds[0] < bounds[1]:
        raise ValueError(f"bounds is {bounds}; {allowed}.")


def _is_number(value: object) -> bool:
    if isinstance(value, jax.core.Tracer):
        return False
    return isinstance(value, numbers.Real) or getattr(value, "shape", None) == ()


def check_box(bounds: Bounds) -> None:
    """Raises ValueError unless the bounds are a finite box."""
    check_bounds(bounds)
    if bounds is None or not all(map(math.isfinite, bounds)):
        raise ValueError(f"bounds is {bounds}; this attack needs a finite (low, high).")


def check_norm(p: float, allowed: tuple[float, ...]) -> float:
    """Raises ValueError unless p is among the norms that an attack knows."""
    p = linalg.check_exponent("p", p)
    if p not in allowed:
        known = ", ".join(f"{q:g}" for q in allowed)
        raise ValueError(f"p is {p:g}; this attack knows {known}.")
    return p
