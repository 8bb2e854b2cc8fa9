"""Every registered attack with a few steps, for tests that need no strong attack."""

import inspect
import math
from typing import Any

from opnorm import attacks

_OPTIONS: dict[str, dict[str, Any]] = {
    "apgd": {"num_steps": 6, "loss": "dlr_targeted", "num_targets": 2},
    "auto_attack": {"num_steps": 3, "num_queries": 4},
    "boundary": {"num_steps": 30},
    "carlini_wagner": {"num_steps": 6, "num_searches": 2},
    "decoupled_direction": {"num_steps": 6},
    "deepfool": {"num_steps": 6},
    "fab": {"num_steps": 4, "num_targets": 2},
    "fast_minimum_norm": {"num_steps": 6},
    "fgm": {},
    "gaussian_noise": {},
    "log_barrier": {"num_outer": 2, "num_inner": 10},
    "pga": {"num_steps": 3, "num_restarts": 2, "keep": "success"},
    "square": {"num_queries": 8},
    "uniform_noise": {"num_draws": 3},
    "wrm": {"gamma": 1.0, "bounds": (0.0, 1.0)},
}
_NORMS = (1.0, 2.0, math.inf)


def make(name: str, p: float, epsilon: Any, **inputs: Any) -> attacks.Attack:
    """Makes the attack in the box [0, 1]; a ValueError if it does not know ``p``."""
    options = {"bounds": (0.0, 1.0), **_small_options(name), **inputs}
    return attacks.make(name, p=p, epsilon=epsilon, **options)


def _small_options(name: str) -> dict[str, Any]:
    """A new attack needs no entry above: its counts are 3."""
    known = inspect.signature(getattr(attacks, name)).parameters
    counts = {option: 3 for option in known if option.startswith("num_")}
    return _OPTIONS.get(name, counts)


def norms(name: str) -> list[float]:
    """Returns those of the exponents 1, 2 and infinity that the attack knows."""
    known = []
    for p in _NORMS:
        try:
            make(name, p, 0.1)
        except ValueError:
            continue
        known.append(p)
    return known


def usual_norm(name: str) -> float:
    """Returns 2, or another exponent if the attack does not know 2."""
    known = norms(name)
    return 2.0 if 2.0 in known else known[-1]
