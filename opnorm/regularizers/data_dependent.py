"""Penalties on the operator norm of the Jacobian of a network at the data.

Roth et al. 2020 state the penalty in two forms, which agree inside a ReLU cell:

    ||J v||    and    ||f(x + epsilon v) - f(x)||,

the derivative and a finite difference over the whole perturbation. Both hold the
direction ``v`` constant, which :mod:`opnorm.operators` finds. :func:`jacobian_norm`
does both steps for a network with independent rows. In training, BatchNorm treats the
search and the penalty in different ways, so :mod:`opnorm.training.methods` calls the
two steps.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax import lax

from opnorm import linalg, operators
from opnorm.linalg import BatchFunction


class Penalty(NamedTuple):
    """A penalty per example, and the direction in which it was measured.

    Attributes:
      value: ``(B,)``, the penalty, without a weight lambda.
      direction: v with ``||v||_p = 1``, in the shape of ``x``; it carries no gradient.
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
    """Computes ``||f(x + epsilon v) - f(x)||_q^2 / 2``.

    Gradients flow through both arguments.

    In Roth et al. 2020, Eq. 7, lambda multiplies this value (with its 1/2). Their
    released code has no 1/2, so its lambda is half of the lambda here. With
    ``squared=False`` the value is ``||f(x + epsilon v) - f(x)||_q``, which lambda
    multiplies in Eq. 13, and which is ``epsilon ||J||_{p,q}`` inside a ReLU cell.

    Args:
      outputs: ``(B, d)`` float, f(x).
      shifted_outputs: ``(B, d)`` float, f(x + epsilon v).
      q: exponent of the output norm, in [1, inf].
      squared: True for half the square of the norm, False for the norm.

    Returns:
      ``(B,)``, at least float32.

    Raises:
      ValueError: for q outside [1, inf] or arguments of different shapes.

    Source: Roth et al. 2020, Eqs. 7 and 13.

    Example:
      >>> import jax.numpy as jnp
      >>> from opnorm import regularizers
      >>> outputs = jnp.array([[1.0, 2.0]])
      >>> print(regularizers.difference_penalty(outputs, outputs + 2.0))
      [4.]
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

    For the ``v`` that maximises ``||J v||_q``, held constant, the gradient of this
    value in the parameters is the gradient of half the squared operator norm (envelope
    theorem). Second derivatives are not those of the norm.

    In Roth et al. 2020, Eq. 7, lambda-tilde multiplies the value for ``epsilon=1``. The
    value for their epsilon is multiplied by ``lambda = lambda-tilde / epsilon^2``, the
    same number as for :func:`difference_penalty`. With ``squared=False`` the value is
    ``epsilon ||J v||_q`` (Eq. 13).

    Args:
      f: ``(B, ...) -> (B, d)``.
      x: ``(B, ...)`` float, the inputs in [0, 1] pixel units.
      direction: v in the shape of ``x``; used as a constant.
      epsilon: length of the perturbation, in pixel units; at least 0.
      q: exponent of the output norm, in [1, inf].
      squared: True for half the square of the norm, False for the norm.

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
      epsilon: length of the perturbation in [0, 1] pixel units, at least 0; only a
        factor for ``variant="derivative"``.
      variant: "difference" (:func:`difference_penalty`) or "derivative"
        (:func:`derivative_penalty`). These functions state the convention of lambda.
      squared: True for half the square of the norm (spectral norm regularisation,
        Eq. 7), False for the norm (operator norm regularisation, Eq. 13).
      **search: options of the search for the direction, those of
        :func:`opnorm.operators.jacobian_norm` (method, num_steps, tolerance, ...).

    Returns:
      ``penalty(f, x, key=None, init=None) -> Penalty``, for ``f: (B, ...) -> (B, d)``
      with independent rows and ``x`` of shape ``(B, ...)``. An iterative search needs
      ``key`` or ``init``, a warm start in the shape of ``x``.

    Raises:
      ValueError: for an exponent outside [1, inf], a negative epsilon or an unknown
        variant. The returned function raises what
        :func:`opnorm.operators.jacobian_norm` raises.

    Source: Roth et al. 2020, Eqs. 6-7 and 12-13.

    Example:
      Half the squared spectral norm of a linear network, whose norm is 3:

      >>> import jax
      >>> import jax.numpy as jnp
      >>> import numpy as np
      >>> from opnorm import regularizers
      >>> weights = jnp.diag(jnp.array([3.0, 1.0]))
      >>> f = jax.tree_util.Partial(lambda w, x: x @ w, weights)
      >>> penalty = regularizers.jacobian_norm(variant="derivative", method="dense")
      >>> print(np.asarray(penalty(f, jnp.zeros((1, 2))).value).round(3))
      [4.5]
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
        # Without a square root, the gradient is exact at zero, too.
        return 0.5 * linalg.inner(change, change)
    size = linalg.norm(change, q)
    return 0.5 * size**2 if squared else size
