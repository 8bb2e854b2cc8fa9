"""Checks of the labels, inputs and options that attacks take."""

import numbers
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from opnorm import linalg

# One end of a box: a number, or an array that broadcasts against one example.
Bound = float | np.ndarray
Bounds = tuple[Bound, Bound] | None


def known(array: object) -> bool:
    """Whether the values are at hand: not traced, nor on devices of other processes."""
    if isinstance(array, jax.core.Tracer):
        return False
    return not isinstance(array, jax.Array) or array.is_fully_addressable


def check_inside(x: jax.Array | np.ndarray, bounds: Bounds, name: str = "x") -> bool:
    """Raises ValueError unless x is in the box, where it is :func:`known`.

    Clipping an input from outside into the box would leave the budget. Rounding, a
    millionth of the bounds, is allowed. The error calls the input ``name``.

    Args:
      x: ``(B, ...)``.
      bounds: box (low, high) of numbers or of arrays that broadcast against one
        example, or None.
      name: what the error calls x.

    Returns:
      Whether it is known that clipping changes no entry of x.
    """
    if bounds is None:
        return True
    arrays = has_arrays(bounds)
    if arrays:
        check_shapes(bounds, x.shape[1:])
    if not known(x):
        return False
    # Values of each entry where entries have bounds of their own, else of all entries.
    low, high = (
        np.asarray(value, float)
        for value in ((x.min(axis=0), x.max(axis=0)) if arrays else (x.min(), x.max()))
    )
    least, most = (np.asarray(end, float) for end in bounds)
    sizes = np.abs(np.stack(np.broadcast_arrays(least, most)))
    slack = 1e-6 * np.max(np.where(np.isfinite(sizes), sizes, 0.0), axis=0)
    outside = (low < least - slack) | (high > most + slack)
    if np.any(outside):
        values = f"from {low.min():g} to {high.max():g}, outside of the bounds"
        if arrays:
            at = tuple(int(i[0]) for i in np.nonzero(outside))
            low, high, least, most = (
                np.broadcast_to(a, x.shape[1:]) for a in (low, high, least, most)
            )
            box = f"({least[at]:g}, {most[at]:g})"
            raise ValueError(
                f"{name} has values from {low[at]:g} to {high[at]:g} in entry {at}, "
                f"outside of its bounds {box}; give values in the units of the bounds, "
                "or other bounds."
            )
        bytes_ = high > 2 and tuple(bounds) == (0, 1)
        remedy = "divide bytes by 255" if bytes_ else "give values in these units"
        raise ValueError(
            f"{name} has values {values} {tuple(bounds)}; {remedy}, or give other "
            f"bounds and, in the units of {name}, other lengths."
        )
    return bool(np.all((least <= low) & (high <= most)))


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
            "class. A binary network f of one logit z, with class 1 where z > 0, is "
            "given as attacks.binary(f): jnp.concatenate([jnp.zeros_like(z), z], 1). "
            "For regression see attacks.with_criterion."
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


def check_bounds(bounds: object) -> Bounds:
    """Returns bounds whose ends are numbers or NumPy arrays.

    Args:
      bounds: None, or a pair (low, high). Each end is a number or an array, such as one
        number for each channel or feature, that broadcasts against one example; its
        entries may be infinite. A feature with low = high is fixed.

    Raises:
      ValueError: for anything else, for NaN, and unless low < high (for arrays: low <=
        high, and low < high somewhere).
    """
    if bounds is None:
        return None
    allowed = "it must be (low, high) with low < high, or None"
    if not isinstance(bounds, tuple | list) or len(bounds) != 2:
        raise ValueError(f"bounds is {bounds!r}; {allowed}.")
    ends = [_read_end(end) for end in bounds]
    if any(end is None for end in ends):
        raise ValueError(
            f"bounds is {_shown(bounds)}; {allowed}. The ends are numbers, or arrays "
            "with a number for each channel or feature; NumPy's arrays also where a "
            "function is traced."
        )
    low, high = ends
    assert low is not None
    assert high is not None
    try:
        ordered, equal = np.asarray(low < high), np.asarray(low == high)
    except ValueError:
        raise ValueError(
            f"bounds is {_shown(bounds)}; the shapes of its ends must fit together."
        ) from None
    if not (np.any(ordered) and np.all(ordered | (equal if equal.ndim else False))):
        shown = bounds if not ordered.ndim else _first_wrong(low, high, ordered | equal)
        raise ValueError(f"bounds is {shown}; {allowed}.")
    return low, high


def check_shapes(bounds: Bounds, shape: tuple[int, ...], name: str = "bounds") -> None:
    """Raises ValueError unless arrays broadcast against one example of a shape."""
    for end in bounds or ():
        try:
            np.broadcast_to(end, shape)
        except ValueError:
            raise ValueError(
                f"{name} has an array of shape {np.shape(end)}; it must broadcast "
                f"against one example, {shape}."
            ) from None


def has_arrays(bounds: Bounds) -> bool:
    """Whether single features have bounds of their own."""
    return bounds is not None and any(isinstance(end, np.ndarray) for end in bounds)


def is_finite(bounds: Bounds) -> bool:
    """Whether every entry has a lowest and a highest value."""
    return bounds is not None and all(bool(np.all(np.isfinite(end))) for end in bounds)


def hashable(bounds: Bounds) -> Bounds:
    """Returns the bounds with nested tuples for arrays, as static options need them."""

    def frozen(value: Any) -> Any:
        return tuple(map(frozen, value)) if isinstance(value, list) else value

    if bounds is None or not has_arrays(bounds):
        return bounds
    low, high = (frozen(np.asarray(end).tolist()) for end in bounds)
    return low, high


def _read_end(value: object) -> Bound | None:
    """An end of a box; None for a value that is no end."""
    if isinstance(value, jax.core.Tracer):
        return None
    if isinstance(value, numbers.Real) or getattr(value, "shape", None) == ():
        return value  # type: ignore[return-value]
    try:
        array = np.asarray(value)
    except ValueError:
        return None
    if array.dtype.kind not in "iuf" or array.size == 0 or np.any(np.isnan(array)):
        return None
    return array.astype(float)


def _first_wrong(low: Bound, high: Bound, good: np.ndarray) -> str:
    lows, highs = np.broadcast_arrays(low, high)
    at = tuple(int(i[0]) for i in np.nonzero(~good)) or (0,) * good.ndim
    return f"({lows[at]:g}, {highs[at]:g}) in entry {at}"


def _shown(bounds: Sequence[object]) -> str:
    """The ends of a box for an error, arrays by their shape."""
    ends = (
        f"an array of shape {np.shape(end)}" if hasattr(end, "shape") else repr(end)
        for end in bounds
    )
    return f"({', '.join(ends)})"


def check_norm(p: float, allowed: tuple[float, ...]) -> float:
    """Raises ValueError unless p is among the norms that an attack knows."""
    p = linalg.check_exponent("p", p)
    if p not in allowed:
        known = ", ".join(f"{q:g}" for q in allowed)
        raise ValueError(f"p is {p:g}; this attack knows {known}.")
    return p
