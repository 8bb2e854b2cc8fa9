"""experiments: attacks as they are asked for on the command line."""

import ast
import functools
import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from experiments.common import options
from opnorm import attacks

# Options of attacks that are not given with their names, and why.
_GIVEN_ELSEWHERE = {
    "p": "the norm is given with --p",
    "epsilon": "budgets are given with --epsilons",
    "bounds": "attacked pictures stay in [0, 1]",
    "targeted": "attacks here lead away from the true classes",
}
_WORDS = {"true": True, "false": False, "none": None, "inf": math.inf}


class AttackSpec(NamedTuple):
    """An attack as it was asked for.

    Attributes:
      name: in the registry of attacks.
      options: its options, sorted by name.
    """

    name: str
    options: tuple[tuple[str, Any], ...]

    def __str__(self) -> str:
        return " ".join([self.name, *(f"{k}={v}" for k, v in self.options)])


def parse_attack(text: str) -> AttackSpec:
    """Reads ``"pga num_steps=20 loss=dlr random_start=false"``.

    PGA keeps the first misclassified point unless told otherwise: a reported accuracy
    counts an example as standing only if no iterate breaks it.

    Raises:
      ValueError: for a word that is not ``option=value``, an unknown attack, an option
        that it does not have or that is given elsewhere, or a value of another kind
        than the option's default.
    """
    name, *words = text.split() or [""]
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
    if name not in attacks.NAMES:
        raise ValueError(f"attack is {name!r}; it may be {', '.join(attacks.NAMES)}.")
    _check_options(name, options)
    if name == "pga":
        options.setdefault("keep", "success")
    return AttackSpec(name, tuple(sorted(options.items())))


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
def factory(spec: AttackSpec, p: float) -> Callable[[Any], attacks.Attack]:
    """``epsilon -> attack``: one object for each attack, so that it compiles once."""
    budget = has_budget(spec)

    def make(epsilon: Any) -> attacks.Attack:
        return attacks.make(
            spec.name, p=p, epsilon=epsilon if budget else None, **dict(spec.options)
        )

    return make


def has_budget(spec: AttackSpec) -> bool:
    """Whether the attack is run at each epsilon, or looks for the nearest point."""
    return attacks.needs_budget(spec.name)
