"""attacks: perturbations of an input that change the decision. Imports linalg."""

from opnorm.attacks.gradient import Attack, fgm, pga, uniform_noise
from opnorm.attacks.losses import cross_entropy, logit_distance, margin

__all__ = [
    "Attack",
    "cross_entropy",
    "fgm",
    "logit_distance",
    "margin",
    "pga",
    "uniform_noise",
]
