"""regularizers: penalties on the gradient of the loss in the input.

To first order a perturbation of length epsilon in an Lp norm raises the loss by epsilon
times the dual norm of its gradient, so that norm is what is penalised: the 2-norm
against L2 attacks, the 1-norm against Linf, the inf-norm against L1. It can be taken by
a finite difference along the steepest direction (two passes forward, no second
derivative) or by differentiating the gradient itself.
"""

import math

import jax
import jax.numpy as jnp
from jax import lax

from opnorm import linalg, operators
from opnorm.regularizers.data_dependent import BatchFunction, Penalty

METHODS = ("forward", "central", "double_backpropagation")


def gradient_direction(gradient: jax.Array, p: float) -> jax.Array:
    """Computes the direction of length 1 in L2 along which differences are taken.

    It is the steepest direction in Lp, ``T_{p*}(g)``, divided by its L2 length: g for p
    = 2, its sign for inf, its largest entries for 1.

    Args:
      gradient: ``(B, ...)`` float.
      p: exponent of the attack's norm, in [1, inf].

    Returns:
      Shape and dtype of ``gradient``; zero where it is zero. No gradient flows through.

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
    """Turns the loss's slope along :func:`gradient_direction` into the penalty.

    The slope is ``<g, d> = ||g||_{p*} / ||T_{p*}(g)||_2``, so that it is scaled back.

    Args:
      slope: ``(B,)`` float.
      direction: ``(B, ...)``, from :func:`gradient_direction`.
      p: exponent of the attack's norm.
      squared, divide_by_size: as for :func:`gradient_penalty`.

    Returns:
      ``(B,)``, at least float32; 0 where the slope is.

    Raises:
      ValueError: for p outside [1, inf].

    Source: Finlay & Oberman, Eq. 9.
    """
    # In Lp the direction has length 1 / ||T||_2.
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
    """Computes ``||grad_x loss||_{p*}^2 / 2`` of each example, or the norm itself.

    Methods, which agree to O(step), or its square for "central":

    - "forward": ``(loss(x + h d) - loss(x)) / h`` along the steepest direction d, which
      is held constant; both losses carry gradients to the parameters.
    - "central": ``(loss(x + h d) - loss(x - h d)) / 2 h``, a pass more.
    - "double_backpropagation": the norm of the gradient, differentiated through. On
      ReLU networks the second derivative in x is zero, but not the mixed one.

    Conventions of lambda: Finlay & Oberman, Eq. 8, weight this value (with its 1/2) by
    lambda, and so does their code; their Algorithm 1 leaves the 1/2 out. Against Linf
    what they call the squared 1-norm is, with their direction ``sign(g) / sqrt(n)``,
    that norm divided by the number n of inputs: ``divide_by_size``.

    Args:
      loss: batch function ``(B, ...) -> (B,)`` with independent rows, at least float32.
        A network that computes in half precision makes differences of rounding:
        use "double_backpropagation" for it, or float32.
      x: ``(B, ...)`` float, at least float32 for a difference.
      p: exponent of the attack's norm, in [1, inf]; the gradient is measured in its
        conjugate.
      method: one of the above.
      step: h, the L2 length of the difference, in [0, 1] pixel units.
      squared: half the square of the norm, or the norm (Simon-Gabriel et al. 2019).
      divide_by_size: divides the squared norm by the number of inputs.

    Returns:
      The penalty and the direction, of L2 length 1.

    Raises:
      ValueError: for an unknown method, a step that is not positive, divide_by_size
        without squared, half precision in a difference, or a loss that does not return
        one number for each example.

    Source: Finlay & Oberman, Eqs. 8-9 and Algorithm 1; Drucker & Le Cun 1992.
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
        # By the envelope theorem the steepest direction may be held constant.
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

    The mean of ``d ||J^T u||^2 / 2`` over directions u drawn uniformly from the sphere
    of the outputs; without bias, and differentiable in what ``f`` closes over.

    Args:
      f: batch function ``(B, ...) -> (B, d)`` with independent rows.
      x: ``(B, ...)`` float.
      num_projections: directions, one transposed pass each, at least 1.
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
    wide = jnp.promote_types(x.dtype, jnp.float32)
    outputs = jnp.zeros((len(x), jacobian.out_size), wide)
    total = jnp.zeros(len(x))
    for each in jax.random.split(key, num_projections):
        pulled = jacobian.rmatvec(linalg.sample_sphere(each, outputs, 2.0))
        total = total + linalg.inner(pulled, pulled)
    return 0.5 * jacobian.out_size * total / num_projections
