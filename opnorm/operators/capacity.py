"""Capacity norms of a chain of layers, which bound its generalisation.

All quantities are logarithms, since products of the norms of fifty layers overflow.
"""

import functools
import math
from collections.abc import Mapping, Sequence
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

# The options that each scheme takes; the scheme wrm takes one of two.
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
      log_product: log Q, where Q is the product of the spectral norms. Q is the
        spectral complexity in Definition 7 of the paper on the regularisation view.
      log_ratio: log S, where ``S = sum_l ||W_l||_F^2 / ||W_l||_2^2`` is the sum of the
        stable ranks.
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
      log_ratio: log S, where ``S = sum_l ||W_l||_F^2 / ||W_l||_2^2`` is the sum of the
        stable ranks.
      log_smoothness: log QR, where QR bounds the Lipschitz constant of the gradient of
        the loss in the input.
      log_factor: log F, the factor of the attack; 0 without an attack.
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

    Args:
      layers: the layers from :func:`layers`; with ``batch_norm="ignore"`` for the
        weights alone.
      form: "operator" takes as W the map of each layer on a whole example, as in the
        theorem; the Frobenius norm of a convolution counts each tap once for every
        window in which it lies on the image. "kernel" takes kernel matrices, whose
        Frobenius and spectral norms are smaller.
      num_steps: Golub-Kahan steps for the norm of a convolution.

    Returns:
      log Phi and its two terms. If a layer is zero, log Phi and log Q are -inf, and the
      layer adds nothing to S.

    Raises:
      ValueError: for an unknown form, or a network that multiplies by parameters that
        are in no kernel.

    Source: Farnia et al. 2019, Phi^erm (Theorem 1); Neyshabur et al. 2018.

    Example:
      The spectral norms are 4 and 3, and the stable ranks 17 / 16 and 13 / 9.

      >>> import jax.numpy as jnp
      >>> from opnorm import operators
      >>> first = operators.Layer(jnp.diag(jnp.array([4.0, 1.0])), "a", "dense", (2,))
      >>> last = operators.Layer(jnp.diag(jnp.array([2.0, 3.0])), "b", "dense", (2,))
      >>> found = operators.log_spectral_complexity([first, last])
      >>> print(f"{jnp.exp(found.log_product):.2f} {jnp.exp(found.log_ratio):.2f}")
      12.00 2.51
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

    The capacity norm is ``Phi = (Q F)^2 S`` with Q, R and S of :class:`Capacity`. The
    factor F depends on the scheme:

    - "erm", no attack: ``F = 1``;
    - "fgm", one step of length epsilon: ``F = 1 + epsilon / kappa QR``;
    - "pgm", r steps of length alpha, with ``a = 2 alpha / kappa QR``:
      ``F = 1 + alpha / kappa (1 + a + ... + a^(r - 1)) QR``. The sum is also right for
      ``a = 1``, and its logarithm does not overflow;
    - "wrm": ``F = 1 + QR / (penalty - QR)``, inf where ``QR >= penalty``.

    The difference between the error under the attack and the margin loss under the
    attack on n training examples (:func:`opnorm.analysis.margin_loss` with margin m) is
    bounded by a multiple of ``sqrt(Phi / (m^2 n))``. So margins are compared in units
    of sqrt(Phi). The theorems hold for chains of layers without biases, with
    1-Lipschitz functions between them, and for a loss whose value and gradient are
    1-Lipschitz. Except for "erm", the derivatives of the functions must be 1-Lipschitz,
    too, which excludes ReLU. The constants of the theorems are not known, so Phi
    compares networks and is not a bound.

    **"wrm" is inf for trained networks**: the theorem needs ``QR < penalty``, and five
    layers of norm 1.3 have QR = 44, while the penalty is 0.1 or 0.2 in the paper.

    Args:
      layers: all layers of the chain, from :func:`layers`.
      scheme: "erm", "fgm", "pgm" or "wrm". A scheme takes the options in its formula
        and refuses the others. All options are scalars that may be traced, except
        ``attack_steps``. Under ``jax.vmap`` over an option, the norms are computed
        once.
      epsilon: length of the step of "fgm", in [0, 1] pixel units; 0 gives "erm".
      step_size: alpha of "pgm", in [0, 1] pixel units; the paper uses
        ``2 epsilon / r``.
      attack_steps: r of "pgm", at least 1.
      kappa: for "fgm" and "pgm", the smallest L2 norm of the gradient of the loss in
        the input within epsilon of the data, in loss per pixel unit, at least 0. The
        smallest of :func:`opnorm.analysis.gradient_norms` exceeds it. At 0 the capacity
        is inf.
      gamma: for "wrm", the price of the squared length, as in
        :func:`opnorm.attacks.wrm`.
      penalty: for "wrm", the same price in the convention of the paper (its lambda),
        ``penalty / 2 ||z - x||_2^2``, which is twice gamma. Exactly one of gamma and
        penalty must be given.
      input_scale: the factor ``1 / std`` of the pixels at the input of the network, one
        number or one per channel, of which the largest is used. It is multiplied into
        the first layer. Constants of the network are in no layer, whichever function
        found the layers.
      form: the matrices W, as in :func:`log_spectral_complexity`.
      num_steps: Golub-Kahan steps for the norm of a convolution.

    Returns:
      log Phi and its parts. If a layer is zero, log Phi is -inf for every kappa.

    Raises:
      ValueError: for an unknown scheme or form, an option that the scheme needs or does
        not take, one out of range, or a network that multiplies by parameters that are
        in no kernel.

    Source: Farnia et al. 2019, Theorems 1 to 4 and Lemma 7.
    """
    given = {
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

    def log(value: float | jax.Array | None) -> jax.Array:
        return jnp.log(jnp.asarray(value, logs.dtype))

    if scheme == "fgm":
        added = _log_over(log(epsilon), log(kappa)) + smoothness
    elif scheme == "pgm":
        pace = _log_over(log(step_size), log(kappa))
        ratio = math.log(2) + pace + smoothness
        steps = jnp.arange(1, attack_steps, dtype=ratio.dtype)
        # The log of a^0 is 0 for every a, even where the log of a is infinite.
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
    """The log of a quotient; 0 / 0 is 0, since an attack of length 0 adds nothing."""
    nothing = jnp.isneginf(numerator)
    return jnp.where(nothing, -jnp.inf, numerator - denominator)


def _log_norms(
    layers: Sequence[Layer], form: str, num_steps: int
) -> tuple[jax.Array, jax.Array]:
    """The logs of the spectral norms, ``(L,)``, and of the sum of the stable ranks."""
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
        norm, length = _convolution_norms(
            layer.kernel,
            input_shape=layer.input_shape,
            num_steps=num_steps,
            **layer.options,
        )
        spectral.append(norm)
        frobenius.append(length)
    norms, lengths = stack(spectral), stack(frobenius)
    ratio = jnp.where(norms == 0, 0.0, lengths / jnp.where(norms == 0, 1.0, norms))
    return jnp.log(norms), jnp.log(jnp.sum(ratio**2))


# Layers of one shape share a program, whatever their names are.
@functools.partial(
    jax.jit,
    static_argnames=(
        *("input_shape", "num_steps"),
        *("strides", "padding", "kernel_dilation", "groups"),
    ),
)
def _convolution_norms(
    kernel: jax.Array, *, input_shape: tuple[int, ...], num_steps: int, **options: Any
) -> tuple[jax.Array, jax.Array]:
    """The spectral and the Frobenius norm of a convolution as a map."""
    found = linalg.convolution_norm(kernel, input_shape, num_steps=num_steps, **options)
    frobenius = linalg.convolution_frobenius_norm(kernel, input_shape, **options)
    return found.value, frobenius


def _check(scheme: str, given: Mapping[str, object]) -> None:
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
