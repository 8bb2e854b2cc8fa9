"""attacks: every attack by its name, for flags and configuration files."""

import inspect
from collections.abc import Callable
from typing import Any

from opnorm.attacks.apgd import apgd
from opnorm.attacks.attack import Attack
from opnorm.attacks.boundary import boundary
from opnorm.attacks.carlini_wagner import carlini_wagner
from opnorm.attacks.decoupled_direction import decoupled_direction, fast_minimum_norm
from opnorm.attacks.deepfool import deepfool
from opnorm.attacks.ensemble import auto_attack
from opnorm.attacks.fab import fab
from opnorm.attacks.gradient import fgm, gaussian_noise, pga, uniform_noise
from opnorm.attacks.log_barrier import log_barrier
from opnorm.attacks.square import square
from opnorm.attacks.wrm import wrm

_FACTORIES: dict[str, Callable[..., Attack]] = {
    "apgd": apgd,
    "auto_attack": auto_attack,
    "boundary": boundary,
    "carlini_wagner": carlini_wagner,
    "decoupled_direction": decoupled_direction,
    "deepfool": deepfool,
    "fab": fab,
    "fast_minimum_norm": fast_minimum_norm,
    "fgm": fgm,
    "gaussian_noise": gaussian_noise,
    "log_barrier": log_barrier,
    "pga": pga,
    "square": square,
    "uniform_noise": uniform_noise,
    "wrm": wrm,
}
NAMES = tuple(_FACTORIES)


def make(
    name: str,
    *,
    p: float,
    epsilon: Any = None,
    bounds: Any = (0.0, 1.0),
    **options: Any,
) -> Attack:
    """Makes an attack from its name.

    Args:
      name: one of ``NAMES``.
      p: exponent of the norm; an attack made for one norm must be given that one.
      epsilon: budget, scalar or ``(B,)``, may be traced; attacks that look for the
        nearest point do without, or take None for that.
      bounds: box (low, high), or None.
      **options: of the attack's function.

    Returns:
      The attack.

    Raises:
      ValueError: for an unknown name, an option that the attack does not have or does
        not allow, a norm that it does not know, or a missing budget.
    """
    if name not in _FACTORIES:
        raise ValueError(f"attack is {name!r}; it may be {', '.join(NAMES)}.")
    factory = _FACTORIES[name]
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
    return attack


def needs_budget(name: str) -> bool:
    """Whether an attack of this name cannot do without an epsilon."""
    if name not in _FACTORIES:
        raise ValueError(f"attack is {name!r}; it may be {', '.join(NAMES)}.")
    known = inspect.signature(_FACTORIES[name]).parameters
    return "epsilon" in known and known["epsilon"].default is inspect.Parameter.empty
