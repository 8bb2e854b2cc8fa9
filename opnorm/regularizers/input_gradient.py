"""Penalties on the gradient of the loss in the input.

To first order, a perturbation of length epsilon in an Lp norm raises the loss by at
most epsilon times the dual norm of the gradient. So the dual norm is penalised: the
2-norm against L2 attacks, the 1-norm against Linf attacks, the inf-norm against L1
attacks. It is measured by a finite difference along the steepest direction (two forward
passes, no second derivative) or by differentiating the gradient.
"""

import math

import jax
import jax.numpy as jnp
from jax import lax

from opnorm import linalg, operators
from opnorm.linalg import BatchFunction
from opnorm.linalg.dtypes import at_least_single
from opnorm.regularizers.data_dependent import Penalty

METHODS = ("forward", "central", "double_backpropagation")


def gradient_direction(gradient: jax.Array, p: float) -> jax.Array:
    """Computes the direction of finite differences, of L2 length 1.

    It is the steepest direction in Lp, ``T_{p*}(g)``, divided by its L2 length. For
    p = 2 it is parallel to g, for p = inf to the sign of g, and for p = 1 to the
    entries of g with the largest modulus.

    Args:
      gradient: ``(B, ...)`` float.
      p: exponent of the attack's norm, in [1, inf].

    Returns:
      An array with the shape and dtype of ``gradient``; zero for an example whose
      gradient is zero. It carries no gradient.

    Raises:
      ValueError: for p outside [1, inf].

    Source: Finlay & Oberman, Eq. 9.
    """
    steepest = linalg.dual_map(gradient, linalg.conjugate_exponent(p))
    return lax.stop_gradient(linalg.dual_map(steepest, 2.0))


def slope_penalty(
    slope: jax.Array,
    direction: jax.Array,
    p: float,
    *,
    squared: bool = True,
    divide_by_size: bool = False,
) -> jax.Array:
    """Computes the penalty from the slope of the loss along :func:`gradient_direction`.

    The slope is ``<g, d> = ||g||_{p*} / ||T_{p*}(g)||_2``, so it is multiplied by
    ``||T_{p*}(g)||_2`` first.

    Args:
      slope: ``(B,)`` float.
      direction: ``(B, ...)``, from :func:`gradient_direction`.
      p: exponent of the attack's norm.
      squared: as in :func:`gradient_penalty`.
      divide_by_size: as in :func:`gradient_penalty`.

    Returns:
      ``(B,)``, at least float32; 0 where the slope is 0.

    Raises:
      ValueError: for p outside [1, inf].

    Source: Finlay & Oberman, Eq. 9.
    """
    # The direction has the length 1 / ||T||_2 in Lp.
    norm = slope / jnp.where(slope == 0, 1.0, linalg.norm(direction, p))
    if squared:
        size = math.prod(direction.shape[1:]) if divide_by_size else 1
        return 0.5 * norm**2 / size
    return norm


def gradient_penalty(
    loss: BatchFunction,
    x: jax.Array,
    *,
    p: float = 2.0,
    method: str = "forward",
    step: float = 0.01,
    squared: bool = True,
    divide_by_size: bool = False,
) -> Penalty:
    """Computes ``||grad_x loss||_{p*}^2 / 2`` of each example, or the norm.

    The methods agree to O(step), "central" to O(step^2):

    - "forward": ``(loss(x + h d) - loss(x)) / h`` along the steepest direction d, which
      is held constant. Both losses carry gradients to the parameters.
    - "central": ``(loss(x + h d) - loss(x - h d)) / 2 h``, with one more pass.
    - "double_backpropagation": the norm of the gradient, which is differentiated again.
      For ReLU networks the second derivative in x is zero; the mixed derivative in x
      and the parameters is not.

    In Finlay & Oberman, Eq. 8, and in their code, lambda multiplies this value (with
    its 1/2); their Algorithm 1 has no 1/2. Against Linf, their squared 1-norm with the
    direction ``sign(g) / sqrt(n)`` is the squared 1-norm divided by the number n of
    inputs; use ``divide_by_size`` for it.

    Args:
      loss: batch function ``(B, ...) -> (B,)`` with independent rows, at least float32.
        Differences of a network in half precision are rounding: use float32 or
        "double_backpropagation" for it.
      x: ``(B, ...)`` float, at least float32 for a difference.
      p: exponent of the attack's norm, in [1, inf]; the gradient is measured in the
        dual norm.
      method: "forward", "central" or "double_backpropagation".
      step: h, the L2 length of the difference, in [0, 1] pixel units.
      squared: True for half the square of the norm, False for the norm
        (Simon-Gabriel et al. 2019).
      divide_by_size: whether the squared norm is divided by the number of inputs.

    Returns:
      The penalty and the direction, of L2 length 1.

    Raises:
      ValueError: for an unknown method, a step that is not positive, divide_by_size
        without squared, half precision in a difference, or a loss that does not return
        one number for each example.

    Source: Finlay & Oberman, Eqs. 8-9 and Algorithm 1; Drucker & Le Cun 1992.

    Example:
      The gradient of ``3 x_1 + 4 x_2`` has the 2-norm 5 and the 1-norm 7.

      >>> import jax.numpy as jnp
      >>> import numpy as np
      >>> from opnorm import regularizers
      >>> def loss(x):
      ...     return x @ jnp.array([3.0, 4.0])
      >>> for p in (2, jnp.inf):
      ...     penalty = regularizers.gradient_penalty(
      ...         loss, jnp.zeros((1, 2)), p=p, squared=False
      ...     )
      ...     print(np.asarray(penalty.value).round(3))
      [5.]
      [7.]
    """
    p = linalg.check_exponent("p", p)
    if method not in METHODS:
        raise ValueError(f"method is {method!r}; it may be {', '.join(METHODS)}.")
    if not 0 < step < math.inf:
        raise ValueError(f"step is {step}; it must be positive and finite.")
    if divide_by_size and not squared:
        raise ValueError("divide_by_size is for the squared norm; squared is False.")
    out = jax.eval_shape(loss, x)
    if out.shape != x.shape[:1]:
        raise ValueError(f"loss returns {out}; it must return shape {x.shape[:1]}.")
    if method != "double_backpropagation":
        if x.dtype.itemsize < 4:
            raise ValueError(
                f"x has dtype {x.dtype}, in which a step of {step} is rounding; give "
                "float32, or use method 'double_backpropagation'."
            )
        if out.dtype.itemsize < 4:
            raise ValueError(
                f"loss returns {out.dtype}, in which a difference over a step of "
                f"{step} is rounding; return float32, or use method "
                "'double_backpropagation'."
            )

    def total(x: jax.Array) -> jax.Array:
        return jnp.sum(loss(x))

    options = {"squared": squared, "divide_by_size": divide_by_size}
    if method == "double_backpropagation":
        gradient = jax.grad(total)(x)
        direction = gradient_direction(gradient, p)
        slope = linalg.inner(gradient, direction)
        # The steepest direction may be held constant, by the envelope theorem.
        return Penalty(slope_penalty(slope, direction, p, **options), direction)
    frozen = linalg.detach(total, x)
    direction = gradient_direction(jax.grad(frozen)(lax.stop_gradient(x)), p)
    shifted = loss(x + step * direction)
    if method == "central":
        slope = (shifted - loss(x - step * direction)) / (2 * step)
    else:
        slope = (shifted - loss(x)) / step
    return Penalty(slope_penalty(slope, direction, p, **options), direction)


def jacobian_frobenius_penalty(
    f: BatchFunction, x: jax.Array, *, num_projections: int = 1, key: jax.Array
) -> jax.Array:
    """Estimates ``||J_f(x)||_F^2 / 2`` of each example from random projections.

    The estimate is the mean of ``d ||J^T u||^2 / 2`` over directions u, which are drawn
    uniformly from the unit sphere of the outputs. It is unbiased, and differentiable
    with respect to the arrays of ``f``.

    Args:
      f: batch function ``(B, ...) -> (B, d)`` with independent rows.
      x: ``(B, ...)`` float.
      num_projections: number of directions, one transposed pass each, at least 1.
      key: typed key.

    Returns:
      ``(B,)``, at least float32.

    Raises:
      ValueError: for num_projections below 1, a key that is not typed, and as
        :func:`opnorm.operators.jacobian_map`.

    Source: Hoffman, Roberts & Yaida 2019.
    """
    num_projections = linalg.check_count("num_projections", num_projections, 1)
    jacobian = operators.jacobian_map(f, x)
    wide = at_least_single(x.dtype)
    outputs = jnp.zeros((len(x), jacobian.out_size), wide)
    total = jnp.zeros(len(x))
    for each in jax.random.split(key, num_projections):
        pulled = jacobian.rmatvec(linalg.sample_sphere(each, outputs, 2.0))
        total = total + linalg.inner(pulled, pulled)
    return 0.5 * jacobian.out_size * total / num_projections
