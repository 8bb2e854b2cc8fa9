"""opnorm: operator norms of network Jacobians, the attacks that follow them and the
training that lowers them.

Rooms: :mod:`opnorm.linalg`, :mod:`opnorm.operators`, :mod:`opnorm.attacks`,
:mod:`opnorm.regularizers`, :mod:`opnorm.analysis`, :mod:`opnorm.models`,
:mod:`opnorm.data`, :mod:`opnorm.training`.
"""

from importlib import metadata

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

try:
    __version__ = metadata.version("opnorm")
except metadata.PackageNotFoundError:
    # A checkout on the path that nobody has installed.
    __version__ = "unknown"

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
