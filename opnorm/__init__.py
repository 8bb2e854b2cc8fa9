"""opnorm: operator norms of network Jacobians, the attacks that follow them and the
training that lowers them.

Rooms: :mod:`opnorm.linalg`, :mod:`opnorm.operators`, :mod:`opnorm.attacks`,
:mod:`opnorm.regularizers`, :mod:`opnorm.analysis`, :mod:`opnorm.models`,
:mod:`opnorm.data`, :mod:`opnorm.training`.
"""

from opnorm import (
    analysis,
    attacks,
    data,
    linalg,
    models,
    operators,
    regularizers,
    training,
)

__version__ = "0.1.0"

__all__ = [
    "analysis",
    "attacks",
    "data",
    "linalg",
    "models",
    "operators",
    "regularizers",
    "training",
]
