"""regularizers: penalties on the operator norm of a network's Jacobian at the data.

Roth et al. 2020 state the penalty in two forms that agree inside a ReLU cell: with the
derivative, ``||J v||``, and with a finite difference over the whole perturbation,
``||f(x + epsilon v) - f(x)||``. Both take the direction ``v`` as a constant; finding it
is the business of :mod:`opnorm.operators`. :func:`jacobian_norm` does both at once for
a network whose rows are independent. Training, where BatchNorm treats the search and
the penalty differently, calls the parts (see :mod:`opnorm.training.methods`).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax import lax

from opnorm import linalg, operators

BatchFunction = Callable[[jax.Array], jax.Array]


class Penalty(NamedTuple):
    """A penalty per example, with the direction at which it was taken.

    Attributes:
      value: ``(B,)``, the penalty, without any weight lambda.
      direction: shape of ``x``, ``||v||_p = 1``, carries no gradient.
    """

    value: jax.Array
    direction: jax.Array


def difference_penalty(
    outputs: jax.Array,
    shifted_outputs: jax.Array,
    *,
    q: float = 2.0,
    squared: bool = True,
) -> jax.Array:
    """Computes how far the outputs moved: ``||f(x + epsilon v) - f(x)||_q^2 / 2``.

    Gradients flow through both arguments.

    Conventions of lambda: Roth et al. 2020, Eq. 7 weights this value (with its 1/2) by
    lambda; their released code has no 1/2, so lambda there is half of lambda here.
    With ``squared=False`` the value is ``||f(x + epsilon v) - f(x)||_q``, which Eq. 13
    weights by lambda, and which is ``epsilon ||J||_{p,q}`` inside a ReLU cell.

    Args:
      outputs: ``(B, d)`` float, f(x).
      shifted_outputs: ``(B, d)`` float, f(x + epsilon v).
      q: exponent of the output norm, in [1, inf].
      squared: half the square of the norm, or the norm.

    Returns:
      ``(B,)``, at least float32.

    Raises:
      ValueError: for q outside [1, inf] or arguments of different shapes.

    Source: Roth et al. 2020, Eqs. 7 and 13.
    """
    linalg.check_exponent("q", q)
    if outputs.shape != shifted_outputs.shape:
        raise ValueError(
            f"shifted_outputs has shape {shifted_outputs.shape}; it must have the "
            f"shape of outputs, {outputs.shape}."
        )
    return size_penalty(shifted_outputs - outputs, q=q, squared=squared)


def derivative_penalty(
    f: BatchFunction,
    x: jax.Array,
    direction: jax.Array,
    *,
    epsilon: float | jax.Array = 1.0,
    q: float = 2.0,
    squared: bool = True,
) -> jax.Array:
    """Computes ``epsilon^2 ||J_f(x) v||_q^2 / 2`` by one differentiated JVP.

    At the maximising ``v``, held constant, its gradient in the parameters is that of
    half the squared operator norm (envelope theorem); second derivatives are not.

    Conventions of lambda: with ``epsilon=1`` this is what Roth et al. 2020, Eq. 7
    weights by lambda-tilde; with their epsilon it is weighted by lambda =
    lambda-tilde / epsilon^2, the same number as for :func:`difference_penalty`. With
    ``squared=False``: ``epsilon ||J v||_q`` (Eq. 13).

    Args:
      f: ``(B, ...) -> (B, d)``.
      x: ``(B, ...)`` float, the inputs in [0, 1] pixel units.
      direction: shape of ``x``; used as a constant.
      epsilon: length of the perturbation, in pixel units; at least 0.
      q: exponent of the output norm, in [1, inf].
      squared: half the square of the norm, or the norm.

    Returns:
      ``(B,)``, at least float32.

    Raises:
      ValueError: for q outside [1, inf] or a direction of another shape than x.

    Source: Roth et al. 2020, Eqs. 7 and 13.
    """
    linalg.check_exponent("q", q)
    if direction.shape != x.shape:
        raise ValueError(
            f"direction has shape {direction.shape}; it must have the shape of x, "
            f"{x.shape}."
        )
    _, gain = jax.jvp(f, (x,), (lax.stop_gradient(direction).astype(x.dtype),))
    return size_penalty(epsilon * gain, q=q, squared=squared)


def jacobian_norm(
    *,
    p: float = 2.0,
    q: float = 2.0,
    epsilon: float | jax.Array = 1.0,
    variant: str = "difference",
    squared: bool = True,
    **search: Any,
) -> Callable[..., Penalty]:
    """Returns the data-dependent (p, q) operator norm penalty of a batch function.

    Args:
      p: exponent of the input norm, in [1, inf].
      q: exponent of the output norm, in [1, inf].
      epsilon: length of the perturbation in [0, 1] pixel units, at least 0; for
        ``variant="derivative"`` only a factor.
      variant: "difference" (:func:`difference_penalty`) or "derivative"
        (:func:`derivative_penalty`); lambda's conventions are stated there.
      squared: half the square of the norm (spectral norm regularisation, Eq. 7) or the
        norm itself (operator norm regularisation, Eq. 13).
      **search: how the direction is found: the options of
        :func:`opnorm.operators.jacobian_norm` (method, num_steps, tolerance, ...).

    Returns:
      ``penalty(f, x, key=None, init=None) -> Penalty``, for ``f: (B, ...) -> (B, d)``
      with independent rows and ``x`` of shape ``(B, ...)``; ``key`` or ``init``
      (a warm start shaped like ``x``) starts an iterative search.

    Raises:
      ValueError: for an exponent outside [1, inf], a negative epsilon or an unknown
        variant; at the call, what :func:`opnorm.operators.jacobian_norm` raises.

    Source: Roth et al. 2020, Eqs. 6-7 and 12-13.
    """
    linalg.check_exponent("p", p)
    linalg.check_exponent("q", q)
    linalg.check_length("epsilon", epsilon)
    if variant not in ("difference", "derivative"):
        raise ValueError(
            f"variant is {variant!r}; it may be 'difference' or 'derivative'."
        )

    def penalty(
        f: BatchFunction,
        x: jax.Array,
        key: jax.Array | None = None,
        init: jax.Array | None = None,
    ) -> Penalty:
        frozen = linalg.detach(f, x)
        found = operators.jacobian_norm(
            frozen, lax.stop_gradient(x), p=p, q=q, key=key, init=init, **search
        )
        v = lax.stop_gradient(found.right).astype(x.dtype)
        if variant == "difference":
            value = difference_penalty(f(x), f(x + epsilon * v), q=q, squared=squared)
        else:
            value = derivative_penalty(f, x, v, epsilon=epsilon, q=q, squared=squared)
        return Penalty(value, v)

    return penalty


def size_penalty(change: jax.Array, *, q: float, squared: bool) -> jax.Array:
    """Computes ``||change||_q^2 / 2`` or ``||change||_q``: ``(B, d) -> (B,)``."""
    if squared and q == 2.0:
        # No square root on the way, so the gradient is exact at zero too.
        return 0.5 * linalg.inner(change, change)
    size = linalg.norm(change, q)
    return 0.5 * size**2 if squared else size
