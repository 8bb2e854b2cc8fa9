"""Every attack by its name, for flags and configuration files.

A factory is registered where it is defined; ``opnorm/attacks/__init__.py`` imports it.
"""

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any, ParamSpec

import jax
import numpy as np

from opnorm.attacks import checks
from opnorm.attacks.adapters import weighted
from opnorm.attacks.attack import Attack
from opnorm.attacks.checks import Bounds

P = ParamSpec("P")

_FACTORIES: dict[str, Callable[..., Attack]] = {}


def register(factory: Callable[P, Attack]) -> Callable[P, Attack]:
    """Registers the factory of an attack under its own name; a decorator.

    Args:
      factory: takes its options by keyword, ``bounds`` among them, and returns an
        attack.

    Returns:
      The factory, whose attacks can be made again with another box
      (:attr:`opnorm.attacks.Attack.remake`).
    """
    default = inspect.signature(factory).parameters["bounds"].default

    @functools.wraps(factory)
    def make_again(*args: P.args, **options: P.kwargs) -> Attack:
        def remake(change: Callable[[Bounds], Bounds]) -> Attack:
            given: dict[str, Any] = dict(options)
            bounds = checks.check_bounds(given.get("bounds", default))
            return _FACTORIES[factory.__name__](**given | {"bounds": change(bounds)})

        return dataclasses.replace(factory(*args, **options), remake=remake)

    _FACTORIES[factory.__name__] = make_again
    return make_again


def names() -> tuple[str, ...]:
    """Returns the names of all attacks, in alphabetical order."""
    return tuple(sorted(_FACTORIES))


def make(
    name: str,
    *,
    p: float,
    epsilon: float | jax.Array | None = None,
    bounds: Bounds = (0.0, 1.0),
    scale: float | np.ndarray | None = None,
    mask: np.ndarray | None = None,
    **options: Any,
) -> Attack:
    """Makes an attack from its name.

    Args:
      name: one of ``opnorm.attacks.NAMES``.
      p: exponent of the norm; an attack made for one norm must be given that one.
      epsilon: budget, scalar or ``(B,)``, may be traced. None for an attack that looks
        for the nearest point; an attack that has no such option ignores it.
      bounds: box (low, high) of numbers, or of arrays that broadcast against one
        example (a number for each channel or feature); or None.
      scale: units of length of the entries, see :func:`opnorm.attacks.weighted`.
      mask: entries that may change, as there.
      **options: further options of the factory.

    Returns:
      The attack.

    Raises:
      ValueError: for an unknown name, an option that the attack does not have or does
        not allow, a norm that it does not know, or a missing budget.

    Example:
      >>> from opnorm import attacks
      >>> attacks.make("pga", p=2, epsilon=0.5, num_steps=20).name
      'pga'
      >>> attacks.make("pga", p=2, epsilon=0.5, steps=20)
      Traceback (most recent call last):
      ValueError: pga has no option 'steps'; it has keep, loss, ..., targeted.
    """
    factory = _find(name)
    known = inspect.signature(factory).parameters
    for option in options:
        if option not in known:
            own = sorted(set(known) - {"p", "epsilon", "bounds"})
            raise ValueError(
                f"{name} has no option {option!r}; it has {', '.join(own)}."
            )
    given: dict[str, Any] = {"bounds": bounds, **options}
    if "p" in known:
        given["p"] = p
    if "epsilon" in known:
        needed = known["epsilon"].default is inspect.Parameter.empty
        if epsilon is None and needed:
            raise ValueError(f"epsilon is None; {name} needs a budget.")
        given["epsilon"] = epsilon
    attack = factory(**given)
    if attack.p != p:
        raise ValueError(f"p is {p:g}; {name} measures p = {attack.p:g} only.")
    return weighted(attack, scale=scale, mask=mask)


def needs_budget(name: str) -> bool:
    """Whether an attack of this name must be given an epsilon.

    Raises:
      ValueError: for an unknown name.
    """
    known = inspect.signature(_find(name)).parameters
    return "epsilon" in known and known["epsilon"].default is inspect.Parameter.empty


def _find(name: str) -> Callable[..., Attack]:
    if name not in _FACTORIES:
        raise ValueError(f"attack is {name!r}; it may be {', '.join(names())}.")
    return _FACTORIES[name]
