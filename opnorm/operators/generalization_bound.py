"""The bound on the generalisation of a robust network, term by term.

All terms are logarithms: u_min is a product of fifty small numbers, and the covering
number of images is a power of their dimension.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from opnorm import linalg
from opnorm.operators.margin_terms import MarginTerms


class GeneralizationBound(NamedTuple):
    """Logarithms of the bound on the gap of the ramp risk and of its terms.

    Each is -inf where its quantity is 0. The shape is that of gamma, with u_min's.

    Attributes:
      log_bound: log of ``max{0, 1 - u_min / gamma} + covering term``, as the theorem
        states the bound. The ramp loss is at most 1, so the bound says nothing where
        its log is 0 or more.
      log_first_term: log of ``max{0, 1 - u_min / gamma}``.
      log_bound_of_proof: log of the bound with the first term of the proof.
      log_first_term_of_proof: log of ``max{0, 2 (1 - u_min / gamma)}``.
      log_covering_term: log of the covering term, a scalar.
    """

    log_bound: jax.Array
    log_first_term: jax.Array
    log_bound_of_proof: jax.Array
    log_first_term_of_proof: jax.Array
    log_covering_term: jax.Array


def log_generalization_bound(
    terms: MarginTerms,
    *,
    gamma: float | jax.Array,
    log_covering_number: float,
    num_examples: int,
    eta: float,
) -> GeneralizationBound:
    """Computes the right-hand side of the paper's theorem, all of it in logarithms.

    With probability ``1 - eta`` the gap of the ramp risk
    (:func:`opnorm.analysis.ramp_risk`) between training and test set is claimed to be
    at most::

        max{0, 1 - u_min / gamma} + sqrt((2 log(2) K + 2 log(1 / eta)) / m)

    **It is a diagnostic and proves nothing about a network.** u_min rests on a step
    that is false in general (Eq. 14, see :func:`log_margin_terms`), it is 0 where a
    layer lacks full rank, and attacks give no lower bound of its distance v_min. The
    paper states two first terms: the theorem has the one above, and its proof ends with
    ``max{0, 2 (1 - u_min / gamma)}``. Both are returned. For images, the covering term
    is far above 1.

    Args:
      terms: the terms from :func:`log_margin_terms`.
      gamma: margin of the ramp loss, positive, in units of the logits; a scalar, or
        ``(G,)`` for several.
      log_covering_number: log K of the inputs at the radius epsilon, at least 0, such
        as :func:`log_covering_number` gives it; at the same epsilon as the balls of
        v_min.
      num_examples: m, the number of training examples, at least 1.
      eta: probability in (0, 1) with which the bound may fail.

    Returns:
      Both forms of the bound and the terms, in the dtype of ``terms``.

    Raises:
      ValueError: for an option out of range.

    Source: "Towards Understanding the Regularization of Adversarial Robustness on
    Neural Networks", 2020, Theorem 4.1 (Eqs. 3 and 4) and the end of its proof.

    Example:
      u_min is 1, so the first term is 1 / 2 for a gamma of 2, and 0 for one of 1.

      >>> import jax.numpy as jnp
      >>> from opnorm import operators
      >>> first = operators.Layer(jnp.diag(jnp.array([4.0, 2.0])), "a", "dense", (2,))
      >>> last = operators.Layer(jnp.diag(jnp.array([3.0, 4.0])), "b", "dense", (2,))
      >>> bound = operators.log_generalization_bound(
      ...     operators.log_margin_terms([first, last], v_min=0.1),
      ...     gamma=jnp.array([2.0, 1.0]),
      ...     log_covering_number=operators.log_covering_number(
      ...         constant=1.0, dimension=2, epsilon=0.1
      ...     ),
      ...     num_examples=50_000,
      ...     eta=0.01,
      ... )
      >>> print(jnp.exp(bound.log_first_term).round(2))
      [0.5 0. ]
      >>> print(jnp.exp(bound.log_bound).round(2))
      [0.55 0.05]
    """
    linalg.check_length("gamma", gamma, positive=True)
    term = log_covering_term(log_covering_number, num_examples=num_examples, eta=eta)
    log_u_min = jnp.asarray(terms.log_u_min)
    covering = jnp.asarray(term, log_u_min.dtype)
    # The log of u_min / gamma, below 0 where the first term is not 0.
    away = log_u_min - jnp.log(jnp.asarray(gamma, log_u_min.dtype))
    below = away < 0
    inside = jnp.log(-jnp.expm1(jnp.where(below, away, -1.0)))
    first = jnp.where(below, inside, -jnp.inf)
    doubled = first + math.log(2)
    stated, proved = (jnp.logaddexp(each, covering) for each in (first, doubled))
    return GeneralizationBound(stated, first, proved, doubled, covering)


def log_covering_number(*, constant: float, dimension: float, epsilon: float) -> float:
    """Computes the log of ``(C / epsilon)^k``, which covers a manifold.

    Args:
      constant: C of the manifold, positive, in the units of epsilon. It is not known
        for images; the diameter of the data is of its order.
      dimension: k, the dimension of the manifold, at least 0.
      epsilon: radius of the balls, positive, at most C.

    Returns:
      The log, at least 0.

    Raises:
      ValueError: for an argument out of range.

    Source: see :func:`log_generalization_bound`; Eq. 3.

    Example:
      >>> from opnorm import operators
      >>> round(operators.log_covering_number(constant=2, dimension=3, epsilon=1), 3)
      2.079
    """
    linalg.check_length("dimension", dimension)
    for name, value in (("constant", constant), ("epsilon", epsilon)):
        if not 0 < value < math.inf:
            raise ValueError(f"{name} is {value}; it must be positive and finite.")
    if epsilon > constant:
        raise ValueError(
            f"epsilon is {epsilon}; it must be at most the constant, {constant}."
        )
    return dimension * (math.log(constant) - math.log(epsilon))


def log_covering_term(
    log_covering_number: float, *, num_examples: int, eta: float
) -> float:
    """Computes the log of ``sqrt((2 log(2) K + 2 log(1 / eta)) / m)``.

    Args:
      log_covering_number: log K of the inputs at the radius epsilon, at least 0, such
        as :func:`log_covering_number` gives it.
      num_examples: m, at least 1.
      eta: probability in (0, 1) with which the bound may fail.

    Returns:
      The log of the term.

    Raises:
      ValueError: for an option out of range.

    Source: see :func:`log_generalization_bound`; Eqs. 3 and 5.

    Example:
      >>> from opnorm import operators
      >>> round(operators.log_covering_term(1000.0, num_examples=50_000, eta=0.01), 2)
      494.75
    """
    num_examples = linalg.check_count("num_examples", num_examples, 1)
    if not math.isfinite(log_covering_number) or log_covering_number < 0:
        raise ValueError(
            f"log_covering_number is {log_covering_number}; it must be finite and at "
            "least 0."
        )
    if not 0 < eta < 1:
        raise ValueError(f"eta is {eta}; it must be above 0 and below 1.")
    covering = math.log(2 * math.log(2)) + log_covering_number
    failing = math.log(-2 * math.log(eta))
    total = float(np.logaddexp(covering, failing))
    return (total - math.log(num_examples)) / 2
