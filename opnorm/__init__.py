"""opnorm: operator norms of network Jacobians, the attacks that follow them and the
training that lowers them.

Rooms: :mod:`opnorm.linalg`, :mod:`opnorm.operators`, :mod:`opnorm.attacks`,
:mod:`opnorm.regularizers`, :mod:`opnorm.analysis`, :mod:`opnorm.models`,
:mod:`opnorm.data`, :mod:`opnorm.runs`, :mod:`opnorm.training`.
"""

from opnorm import (
    analysis,
    attacks,
    data,
    linalg,
    models,
    operators,
    regularizers,
    runs,
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
    "regularizers",
    "runs",
    "training",
]
