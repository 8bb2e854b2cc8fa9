"""attacks: perturbations of an input that change the decision. Imports linalg."""

from opnorm.attacks.apgd import apgd
from opnorm.attacks.attack import Attack, AttackResult, Problem, Stage
from opnorm.attacks.boundary import boundary
from opnorm.attacks.carlini_wagner import carlini_wagner
from opnorm.attacks.decoupled_direction import decoupled_direction, fast_minimum_norm
from opnorm.attacks.deepfool import deepfool
from opnorm.attacks.ensemble import auto_attack, best_distance, first_success
from opnorm.attacks.fab import fab
from opnorm.attacks.gradient import fgm, gaussian_noise, pga, uniform_noise
from opnorm.attacks.log_barrier import log_barrier
from opnorm.attacks.losses import (
    cross_entropy,
    dlr,
    dlr_targeted,
    logit_distance,
    margin,
)
from opnorm.attacks.registry import NAMES, make, needs_budget
from opnorm.attacks.square import square
from opnorm.attacks.wrm import wrm

__all__ = [
    "NAMES",
    "Attack",
    "AttackResult",
    "Problem",
    "Stage",
    "apgd",
    "auto_attack",
    "best_distance",
    "boundary",
    "carlini_wagner",
    "cross_entropy",
    "decoupled_direction",
    "deepfool",
    "dlr",
    "dlr_targeted",
    "fab",
    "fast_minimum_norm",
    "fgm",
    "first_success",
    "gaussian_noise",
    "log_barrier",
    "logit_distance",
    "make",
    "margin",
    "needs_budget",
    "pga",
    "square",
    "uniform_noise",
    "wrm",
]
