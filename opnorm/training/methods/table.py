"""The training methods by name. A new method is one entry here."""

import dataclasses

import jax

from opnorm.training import ranges, units
from opnorm.training.config import Config
from opnorm.training.methods import (
    adversarial,
    data_dependent,
    gradient_regularization,
    interpolated,
    standard,
)
from opnorm.training.methods.method import Definition, Method, Perturb
from opnorm.training.modes import Modes
from opnorm.training.ranges import one_of, optional

_LABELS = {"attack_labels": one_of(("true", "predicted"))}
_PART = {"penalty_fraction": ranges.UNIT_WITHOUT_0}
_ATTACK = {
    "step_size": optional(ranges.POSITIVE_OR_INFINITE),
    "random_start": ranges.ANY,
    **_LABELS,
}
_PENALTY = {
    "search": one_of(("amortized", "dense", "iterative")),
    "variant": one_of(("derivative", "difference")),
    **_PART,
}

TABLE = {
    "standard": Definition("cross-entropy alone", standard.standard),
    "adversarial": Definition(
        "cross-entropy + weight x cross-entropy at PGA perturbations",
        adversarial.adversarial,
        fields=_ATTACK,
        attack=adversarial.pga,
    ),
    "adversarial_only": Definition(
        "cross-entropy at PGA perturbations",
        adversarial.adversarial_only,
        fields=_ATTACK,
        attack=adversarial.pga,
    ),
    "data_dependent_snr": Definition(
        "cross-entropy + weight x half the squared spectral norm of the Jacobian at "
        "each example",
        data_dependent.data_dependent_snr,
        fields=_PENALTY,
        check=data_dependent.check_spectral,
    ),
    "data_dependent_onr": Definition(
        "cross-entropy + weight x the (p, q) operator norm of the Jacobian at each "
        "example",
        data_dependent.data_dependent_onr,
        fields=_PENALTY,
    ),
    "global_snr": Definition(
        "cross-entropy + weight x half the sum of the layers' squared spectral norms",
        standard.global_snr,
    ),
    "interpolated": Definition(
        "cross-entropy + weight x (the adversarial term x (1 - mix) + the term of "
        "data_dependent_snr x mix)",
        interpolated.interpolated,
        fields={**_ATTACK, **_PENALTY, "mix": ranges.UNIT},
        check=interpolated.check,
        attack=adversarial.pga,
    ),
    "gradient_regularization": Definition(
        "cross-entropy + weight x half the squared dual norm of its gradient in the "
        "input",
        gradient_regularization.gradient_regularization,
        fields={
            "difference_step": ranges.POSITIVE,
            "divide_by_size": ranges.ANY,
            **_PART,
        },
        check=gradient_regularization.check,
    ),
    "wrm": Definition(
        "cross-entropy at WRM perturbations, which pay for their squared length",
        adversarial.wrm_only,
        fields={"gamma": ranges.POSITIVE, **_LABELS},
        attack=adversarial.wrm,
    ),
}
# The loss of each method in a line.
METHODS = {name: definition.summary for name, definition in TABLE.items()}


def create(config: Config, modes: Modes) -> Method:
    """Returns the method that a validated configuration names."""
    return TABLE[config.method].create(units.in_pixels(config), modes)


def attack(config: Config, *, strength: float | jax.Array = 1.0) -> Perturb:
    """Returns the attack that a method trains with, for measurements of the same.

    Args:
      config: validated.
      strength: factor of the lengths of perturbation and step; for "wrm" divisor of the
        price. Positive, may be traced.

    Returns:
      ``(f, images, labels, key) -> perturbed images`` for a batch function f. With
      predicted labels the given ones are not used.

    Raises:
      ValueError: for a method that trains with no attack.
    """
    found = TABLE[config.method].attack
    if found is None:
        with_attack = (name for name in TABLE if TABLE[name].attack is not None)
        raise ValueError(
            f"method is {config.method!r}, which trains with no attack; it may be "
            f"{', '.join(with_attack)}."
        )
    return found(units.in_pixels(config), strength)


def methods_with(*fields: str) -> tuple[str, ...]:
    """Returns the methods that use one of the given fields, out of those of some."""
    return tuple(
        name
        for name, definition in TABLE.items()
        if not set(fields).isdisjoint(definition.fields)
    )


def check(config: Config) -> None:
    """Raises ValueError for values that the method cannot take or does not use."""
    definition = TABLE[config.method]
    for name, allowed in definition.fields.items():
        allowed.check(name, getattr(config, name))
    definition.check(config)
    for field in dataclasses.fields(Config):
        owners, value = methods_with(field.name), getattr(config, field.name)
        if owners and config.method not in owners and value != field.default:
            raise ValueError(
                f"{field.name} is {value!r}, which the method {config.method!r} does "
                f"not use; it belongs to {' and '.join(owners)}."
            )
