"""Operator norms of network Jacobians, attacks that follow them, training that
lowers them.

Rooms: :mod:`opnorm.linalg`, :mod:`opnorm.operators`, :mod:`opnorm.attacks`,
:mod:`opnorm.regularizers`, :mod:`opnorm.analysis`, :mod:`opnorm.models`,
:mod:`opnorm.data`, :mod:`opnorm.papers`, :mod:`opnorm.runs`, :mod:`opnorm.torch`,
:mod:`opnorm.training`.
"""

from opnorm import (
    analysis,
    attacks,
    data,
    linalg,
    models,
    operators,
    papers,
    regularizers,
    runs,
    torch,
    training,
)
from opnorm.models import network

__version__ = runs.version()

__all__ = [
    "analysis",
    "attacks",
    "data",
    "linalg",
    "models",
    "network",
    "operators",
    "papers",
    "regularizers",
    "runs",
    "torch",
    "training",
]
