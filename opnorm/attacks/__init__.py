"""Perturbations of an input that change the decision of a network.

This file is the list of the attacks: a factory that it imports has a name for
:func:`make` (``NAMES``).
"""

from opnorm.attacks.adapters import randomized, weighted, with_criterion
from opnorm.attacks.apgd import apgd
from opnorm.attacks.attack import Attack, AttackResult
from opnorm.attacks.boundary import boundary
from opnorm.attacks.carlini_wagner import carlini_wagner
from opnorm.attacks.criteria import Criterion, binary, lead, reached
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
from opnorm.attacks.parts import default_step_size, fold_in
from opnorm.attacks.randomness import Draws
from opnorm.attacks.registry import make, names, needs_budget
from opnorm.attacks.square import square
from opnorm.attacks.stage import Problem, Stage
from opnorm.attacks.targets import choose_targets
from opnorm.attacks.wrm import wrm

NAMES = names()

__all__ = [
    "NAMES",
    "Attack",
    "AttackResult",
    "Criterion",
    "Draws",
    "Problem",
    "Stage",
    "apgd",
    "auto_attack",
    "best_distance",
    "binary",
    "boundary",
    "carlini_wagner",
    "choose_targets",
    "cross_entropy",
    "decoupled_direction",
    "deepfool",
    "default_step_size",
    "dlr",
    "dlr_targeted",
    "fab",
    "fast_minimum_norm",
    "fgm",
    "first_success",
    "fold_in",
    "gaussian_noise",
    "lead",
    "log_barrier",
    "logit_distance",
    "make",
    "margin",
    "needs_budget",
    "pga",
    "randomized",
    "reached",
    "square",
    "uniform_noise",
    "weighted",
    "with_criterion",
    "wrm",
]
