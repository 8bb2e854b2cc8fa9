"""Attacks as the command line names them, with their options."""

import ast
import dataclasses
import functools
import inspect
import math
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from experiments.common import options
from opnorm import attacks

# Options of attacks that are not given behind their names, and the reasons.
_GIVEN_ELSEWHERE = {
    "p": "the norm is given with --p",
    "epsilon": "budgets are given with --epsilons",
    "bounds": "attacked images stay in [0, 1]",
    "targeted": "targets are given to experiments.evaluate with --targets",
}
# Names that other libraries and papers give to attacks, and their names here.
_OTHER_NAMES = {
    "aa": "auto_attack",
    "pgd": "pga",
    "bim": "pga random_start=false",
    "ifgsm": "pga random_start=false",
    "mifgsm": "pga random_start=false momentum=1",
    "fgsm": "fgm, with --p=inf",
    "cw": "carlini_wagner",
    "ddn": "decoupled_direction",
    "fmn": "fast_minimum_norm",
    "apgdce": "apgd",
    "apgddlr": "apgd loss=dlr",
    "boundaryattack": "boundary",
}
# It reaches labels as an attack with another criterion.
_ENSEMBLE = "auto_attack"
_WORDS = {"true": True, "false": False, "none": None, "inf": math.inf}


# An attack as a function of its budgets.
Factory = Callable[[Any], attacks.Attack]


class AttackSpec(NamedTuple):
    """An attack as the user names it.

    Attributes:
      name: its name in the registry of attacks.
      options: its options, sorted by name.
    """

    name: str
    options: tuple[tuple[str, Any], ...]

    def __str__(self) -> str:
        return " ".join([self.name, *(f"{k}={v}" for k, v in self.options)])


@dataclasses.dataclass(frozen=True, eq=False)
class Units:
    """Units of length of the entries of an image, and the entries that may change.

    Attributes:
      scale: the scale of :func:`opnorm.attacks.weighted`; None for 1.
      mask: its mask; None for all entries.
      identity: a digest over both.
    """

    scale: np.ndarray | None
    mask: np.ndarray | None
    identity: str


def parse_attack(text: str) -> AttackSpec:
    """Reads an attack such as ``"pga num_steps=20 loss=dlr random_start=false"``.

    PGA keeps the first misclassified point unless ``keep`` is given: an example counts
    as robust only if the network classifies every iterate correctly.

    The name may be written in capitals, with "-", or without "_": "AutoAttack".

    Raises:
      ValueError: for a word that is not ``option=value``, an unknown attack or one that
        has another name here, an option that it does not have or that is given
        elsewhere, or a value of another kind than the option's default.
    """
    given, *words = text.split() or [""]
    name = _find_name(given)
    options: dict[str, Any] = {}
    for word in words:
        option, equals, value = word.partition("=")
        if not (option and equals and value):
            raise ValueError(
                f"attack is {text!r}; after its name come option=value pairs with "
                "spaces between."
            )
        options[option] = _read_value(value)
        if option == "channels" and options[option] is None:
            # Its "none" is a name.
            options[option] = value.lower()
    _check_options(name, options)
    if name == "pga":
        options.setdefault("keep", "success")
    return AttackSpec(name, tuple(sorted(options.items())))


def _find_name(given: str) -> str:
    """Returns the name of an attack as the registry has it."""
    plain = re.sub("[-_]", "", given.lower())
    for name in attacks.NAMES:
        if name.replace("_", "") == plain:
            return name
    if plain in _OTHER_NAMES:
        raise ValueError(f"attack is {given!r}; here it is {_OTHER_NAMES[plain]}.")
    raise ValueError(f"attack is {given!r}; it may be {', '.join(attacks.NAMES)}.")


def _read_value(text: str) -> Any:
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    try:
        # A fraction is no literal of Python.
        return options.parse_number(text) if "/" in text else ast.literal_eval(text)
    except (ValueError, TypeError, SyntaxError):
        return text


def _check_options(name: str, options: Mapping[str, Any]) -> None:
    parameters = inspect.signature(getattr(attacks, name)).parameters
    known = [option for option in parameters if option not in _GIVEN_ELSEWHERE]
    for option, value in options.items():
        if option in _GIVEN_ELSEWHERE:
            raise ValueError(
                f"attack {name} is given {option}={value}; {_GIVEN_ELSEWHERE[option]}."
            )
        if option not in known:
            raise ValueError(
                f"attack {name} has no option {option!r}; it has {', '.join(known)}."
            )
        default = parameters[option].default
        if isinstance(default, str):
            fits, wanted = isinstance(value, str), "a name"
        elif isinstance(default, bool):
            fits, wanted = value in (True, False), "true or false"
        else:
            fits = isinstance(value, int | float) and not isinstance(value, bool)
            wanted = "a number"
            if default is None:
                fits, wanted = fits or value is None, "a number or none"
        if not fits:
            raise ValueError(
                f"attack {name} is given {option}={value}; it must be {wanted}."
            )
    if name == "wrm" and not {"gamma", "penalty"} & set(options):
        raise ValueError(
            "attack wrm is given no price of the squared length; write one behind its "
            "name, such as 'wrm gamma=2'."
        )


@functools.cache
def factory(
    spec: AttackSpec, p: float, *, targeted: bool = False, units: Units | None = None
) -> Factory:
    """Returns ``epsilon -> attack``: one object, which compiles once.

    Args:
      spec: the attack.
      p: exponent of the norm.
      targeted: whether the attack is to reach its labels.
      units: units of length, or None.

    Raises:
      ValueError: for an attack that has no targeted version.
    """
    budget = has_budget(spec)
    options = dict(spec.options)
    if targeted and spec.name not in _targetable():
        raise ValueError(
            f"attack {spec.name} has no targeted version; with --targets it may be "
            f"{', '.join(_targetable())}."
        )
    if targeted and spec.name != _ENSEMBLE:
        options["targeted"] = True

    def make(epsilon: Any) -> attacks.Attack:
        attack = attacks.make(
            spec.name,
            p=p,
            epsilon=epsilon if budget else None,
            scale=units.scale if units else None,
            mask=units.mask if units else None,
            **options,
        )
        if targeted and spec.name == _ENSEMBLE:
            return attacks.with_criterion(
                attack, loss=attacks.lead, success=attacks.reached
            )
        return attack

    return make


def _targetable() -> list[str]:
    """Returns the names of the attacks that can reach a class."""
    return [
        name
        for name in attacks.NAMES
        if name == _ENSEMBLE
        or "targeted" in inspect.signature(getattr(attacks, name)).parameters
    ]


def has_budget(spec: AttackSpec) -> bool:
    """Returns whether the attack runs at each epsilon, or seeks nearest points."""
    return attacks.needs_budget(spec.name)
