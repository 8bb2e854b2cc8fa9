"""attacks: perturbations of an input that change the decision. Imports linalg."""

from opnorm.attacks.attack import Attack, AttackResult, Problem, Stage
from opnorm.attacks.gradient import fgm, gaussian_noise, pga, uniform_noise
from opnorm.attacks.losses import (
    cross_entropy,
    dlr,
    dlr_targeted,
    logit_distance,
    margin,
)

__all__ = [
    "Attack",
    "AttackResult",
    "Problem",
    "Stage",
    "cross_entropy",
    "dlr",
    "dlr_targeted",
    "fgm",
    "gaussian_noise",
    "logit_distance",
    "margin",
    "pga",
    "uniform_noise",
]
