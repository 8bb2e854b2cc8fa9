"""operators: capacity norms of a chain of layers, which bound its generalisation.

In logarithms throughout: the products of fifty layers' norms overflow.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from opnorm import linalg
from opnorm.operators.layers import (
    Layer,
    check_counted,
    check_form,
    kernel_values,
    stack,
)

# The options that each scheme takes; wrm takes one of its two.
OPTIONS = {
    "erm": (),
    "fgm": ("epsilon", "kappa"),
    "pgm": ("step_size", "attack_steps", "kappa"),
    "wrm": ("gamma", "penalty"),
}


class SpectralComplexity(NamedTuple):
    """Logarithms of ``Phi = Q^2 S``, all scalars.

    Attributes:
      log_complexity: ``2 log Q + log S``.
      log_product: log Q, of the product of the spectral norms; Q alone is the spectral
        complexity of the regularisation view (its Definition 7).
      log_ratio: log S, ``S = sum_l ||W_l||_F^2 / ||W_l||_2^2``, of the stable ranks.
    """

    log_complexity: jax.Array
    log_product: jax.Array
    log_ratio: jax.Array


class Capacity(NamedTuple):
    """Logarithms of ``Phi = (Q F)^2 S`` and of its parts, all scalars.

    Attributes:
      log_capacity: ``2 (log Q + log F) + log S``.
      log_product: log Q, ``Q = prod_l ||W_l||_2``.
      log_sum: log R, ``R = sum_l prod_(j <= l) ||W_j||_2``.
      log_ratio: log S, ``S = sum_l ||W_l||_F^2 / ||W_l||_2^2``, of the stable ranks.
      log_smoothness: log QR, the bound of the Lipschitz constant of the loss's gradient
        in the input.
      log_factor: log F, what the attack adds; 0 without one.
    """

    log_capacity: jax.Array
    log_product: jax.Array
    log_sum: jax.Array
    log_ratio: jax.Array
    log_smoothness: jax.Array
    log_factor: jax.Array


def log_spectral_complexity(
    layers: Sequence[Layer], *, form: str = "operator", num_steps: int = 20
) -> SpectralComplexity:
    """Computes ``log Phi``, ``Phi = prod ||W||_2^2 sum ||W||_F^2 / ||W||_2^2``.

    In logarithms, since the product of many norms overflows.

    Args:
      layers: of :func:`layers`; with ``batch_norm="ignore"`` for weights alone.
      form: which matrices W: "operator", that of each layer's map on a whole example,
        as in the theorem (a convolution's Frobenius norm counts each tap as often as a
        window has it on the picture); "kernel", kernel matrices, whose Frobenius and
        spectral norms are both smaller.
      num_steps: Golub-Kahan steps of a convolution's norm.

    Returns:
      log Phi and its two terms; all are -inf where some layer is zero, but for S, in
      which that layer counts nothing.

    Raises:
      ValueError: for an unknown form, or a network that multiplies by parameters that
        are in no kernel.

    Source: Farnia et al. 2019, Phi^erm (Theorem 1); Neyshabur et al. 2018.
    """
    logs, log_ratio = _log_norms(layers, form, num_steps)
    log_product = jnp.sum(logs)
    return SpectralComplexity(2 * log_product + log_ratio, log_product, log_ratio)


def log_capacity(
    layers: Sequence[Layer],
    *,
    scheme: str,
    epsilon: float | jax.Array | None = None,
    step_size: float | jax.Array | None = None,
    attack_steps: int | None = None,
    kappa: float | jax.Array | None = None,
    gamma: float | jax.Array | None = None,
    penalty: float | jax.Array | None = None,
    input_scale: float | Sequence[float] = 1.0,
    form: str = "operator",
    num_steps: int = 20,
) -> Capacity:
    """Computes the log of the capacity norm of a network under an attack.

    ``Phi = (Q F)^2 S`` with Q, R and S of :class:`Capacity` and

    - "erm", no attack: ``F = 1``;
    - "fgm", one step of length epsilon: ``F = 1 + epsilon / kappa QR``;
    - "pgm", r steps of length alpha:
      ``F = 1 + alpha / kappa (1 + a + ... + a^(r - 1)) QR``, ``a = 2 alpha / kappa
      QR``, a sum that needs no ``a != 1`` and, in logarithms, overflows nowhere;
    - "wrm": ``F = 1 + QR / (penalty - QR)``, inf where ``QR >= penalty``.

    How much the error under the attack may exceed the margin loss under it on n
    training examples (:func:`opnorm.analysis.margin_loss`, of margin m) grows with
    ``sqrt(Phi / (m^2 n))``, so margins are compared in units of sqrt(Phi). The theorems
    are for chains of layers without biases, 1-Lipschitz functions between them, and a
    loss whose value and gradient are 1-Lipschitz; except for "erm" the functions'
    derivatives must be 1-Lipschitz, too, which excludes ReLU. Their constants are not
    known: this is a number to compare networks by, no bound.

    **"wrm" is inf for trained networks**: the theorem needs ``QR < penalty``, and five
    layers of norm 1.3 have QR = 44, for a penalty of 0.1 or 0.2 in the paper.

    Args:
      layers: all of the chain, of :func:`layers`.
      scheme: "erm", "fgm", "pgm" or "wrm". It takes the options below that its formula
        names, each a scalar that may be traced but for ``attack_steps``, and refuses
        the others. Under ``jax.vmap`` over one of them, the norms are computed once.
      epsilon: of "fgm", in [0, 1] pixel units; at 0 it is "erm".
      step_size: alpha of "pgm", in [0, 1] pixel units; the paper's is ``2 epsilon /
        r``.
      attack_steps: r of "pgm", at least 1.
      kappa: of "fgm" and "pgm", at least 0: the smallest L2 norm of the loss's gradient
        in the input within epsilon of the data, in loss per pixel unit. The smallest of
        :func:`opnorm.analysis.gradient_norms` is above it. At 0 the capacity is inf.
      gamma: of "wrm", the price of the squared length, as :func:`opnorm.attacks.wrm`.
      penalty: the same price in the paper's convention (there lambda), ``penalty / 2
        ||z - x||_2^2``: twice gamma. Exactly one of the two is given.
      input_scale: what the network multiplies pixels by first, as for
        :func:`log_lipschitz_bound`: taken into the first layer. Of one number per
        channel the largest.
      form: which matrices W, as :func:`log_spectral_complexity`.
      num_steps: Golub-Kahan steps of a convolution's norm.

    Returns:
      log Phi and its parts. Where some layer is zero, Phi is 0 (-inf), whatever kappa.

    Raises:
      ValueError: for an unknown scheme or form, an option that the scheme needs or does
        not take, one out of range, or a network that multiplies by parameters that are
        in no kernel.

    Source: Farnia et al. 2019, Theorems 1 to 4 and Lemma 7.
    """
    given: dict[str, Any] = {
        "epsilon": epsilon,
        "step_size": step_size,
        "attack_steps": attack_steps,
        "kappa": kappa,
        "gamma": gamma,
        "penalty": penalty,
    }
    _check(scheme, given)
    logs, log_ratio = _log_norms(layers, form, num_steps)
    largest = jnp.max(jnp.abs(jnp.asarray(input_scale, logs.dtype)))
    logs = logs.at[0].add(jnp.log(largest))
    log_product = jnp.sum(logs)
    log_sum = jax.nn.logsumexp(jnp.cumsum(logs))
    smoothness = log_product + log_sum

    def log(value: Any) -> jax.Array:
        return jnp.log(jnp.asarray(value, logs.dtype))

    if scheme == "fgm":
        added = _log_over(log(epsilon), log(kappa)) + smoothness
    elif scheme == "pgm":
        pace = _log_over(log(step_size), log(kappa))
        ratio = math.log(2) + pace + smoothness
        steps = jnp.arange(1, attack_steps)
        # a^0 is 1 for every a, its log 0 even where that of a is infinite.
        powers = jnp.append(steps * ratio, 0.0)
        added = pace + jax.nn.logsumexp(powers) + smoothness
    elif scheme == "wrm":
        price = log(penalty) if gamma is None else math.log(2) + log(gamma)
        allowed = smoothness < price
        share = jnp.where(allowed, smoothness - price, -1.0)
        added = jnp.where(allowed, share - jnp.log(-jnp.expm1(share)), jnp.inf)
    else:
        added = jnp.full_like(smoothness, -jnp.inf)
    zero = jnp.isneginf(log_product)
    log_factor = jnp.where(zero, 0.0, jnp.logaddexp(added, 0.0))
    log_phi = 2 * (log_product + log_factor) + log_ratio
    return Capacity(log_phi, log_product, log_sum, log_ratio, smoothness, log_factor)


def _log_over(numerator: jax.Array, denominator: jax.Array) -> jax.Array:
    """The log of a quotient, 0 / 0 being 0: an attack that goes nowhere."""
    nothing = jnp.isneginf(numerator)
    return jnp.where(nothing, -jnp.inf, numerator - denominator)


def _log_norms(
    layers: Sequence[Layer], form: str, num_steps: int
) -> tuple[jax.Array, jax.Array]:
    """Logs of the spectral norms, ``(L,)``, and of the sum of the stable ranks."""
    check_form(form)
    check_counted(layers)
    spectral, frobenius = [], []
    for layer in layers:
        if form == "kernel" or layer.kind != "convolution":
            places = math.prod(layer.input_shape[:-1]) if form == "operator" else 1
            length = linalg.norm(layer.kernel.reshape(1, -1))[0]
            spectral.append(kernel_values(layer)[0])
            frobenius.append(length * math.sqrt(places))
            continue
        found = linalg.convolution_norm(
            layer.kernel, layer.input_shape, num_steps=num_steps, **layer.options
        )
        spectral.append(found.value)
        frobenius.append(
            linalg.convolution_frobenius_norm(
                layer.kernel, layer.input_shape, **layer.options
            )
        )
    norms, lengths = stack(spectral), stack(frobenius)
    ratio = jnp.where(norms == 0, 0.0, lengths / jnp.where(norms == 0, 1.0, norms))
    return jnp.log(norms), jnp.log(jnp.sum(ratio**2))


def _check(scheme: str, given: dict[str, Any]) -> None:
    if scheme not in OPTIONS:
        raise ValueError(f"scheme is {scheme!r}; it may be {', '.join(OPTIONS)}.")
    for name, value in given.items():
        if value is None:
            if name in OPTIONS[scheme] and scheme != "wrm":
                raise ValueError(f"{name} is None; scheme {scheme!r} needs it.")
            continue
        if name not in OPTIONS[scheme]:
            raise ValueError(f"{name} is {value}; scheme {scheme!r} does not take it.")
        if name != "attack_steps":
            linalg.check_length(name, value, positive=name in OPTIONS["wrm"])
        else:
            linalg.check_count(name, value, 1)
    if scheme == "wrm" and (given["gamma"] is None) == (given["penalty"] is None):
        raise ValueError(
            f"gamma is {given['gamma']} and penalty is {given['penalty']}; exactly one "
            "of them must be given."
        )
