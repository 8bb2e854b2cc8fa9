"""attacks: perturbations of an input that change the decision. Imports linalg."""

from opnorm.attacks.apgd import apgd
from opnorm.attacks.attack import Attack, AttackResult, Problem, Stage
from opnorm.attacks.ensemble import auto_attack, best_distance, first_success
from opnorm.attacks.fab import fab
from opnorm.attacks.gradient import fgm, gaussian_noise, pga, uniform_noise
from opnorm.attacks.losses import (
    cross_entropy,
    dlr,
    dlr_targeted,
    logit_distance,
    margin,
)
from opnorm.attacks.registry import NAMES, make, needs_budget
from opnorm.attacks.square import square

__all__ = [
    "NAMES",
    "Attack",
    "AttackResult",
    "Problem",
    "Stage",
    "apgd",
    "auto_attack",
    "best_distance",
    "cross_entropy",
    "dlr",
    "dlr_targeted",
    "fab",
    "fgm",
    "first_success",
    "gaussian_noise",
    "logit_distance",
    "make",
    "margin",
    "needs_budget",
    "pga",
    "square",
    "uniform_noise",
]
