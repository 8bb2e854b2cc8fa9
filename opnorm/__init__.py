"""Operator norms of network Jacobians, attacks that follow them, training that
lowers them.

Rooms: :mod:`opnorm.linalg`, :mod:`opnorm.operators`, :mod:`opnorm.attacks`,
:mod:`opnorm.regularizers`, :mod:`opnorm.analysis`, :mod:`opnorm.models`,
:mod:`opnorm.data`, :mod:`opnorm.papers`, :mod:`opnorm.reports`, :mod:`opnorm.runs`,
:mod:`opnorm.torch`, :mod:`opnorm.training`. A room is imported when it is first used.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from opnorm import (
        analysis,
        attacks,
        data,
        linalg,
        models,
        operators,
        papers,
        regularizers,
        reports,
        runs,
        torch,
        training,
    )
    from opnorm.models.network import network

    __version__: str

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
    "reports",
    "runs",
    "torch",
    "training",
]


def _import(name: str) -> object:
    """Imports a room, or the name that a room gives to this package."""
    if name == "network":
        return importlib.import_module("opnorm.models").network
    if name == "__version__":
        return importlib.import_module("opnorm.runs").version()
    if name in __all__:
        return importlib.import_module(f"opnorm.{name}")
    raise AttributeError(f"module 'opnorm' has no attribute {name!r}")


# Type checkers read the imports above; with this function they would accept any name.
if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        """Imports what is not there yet; Python calls it once for each name."""
        found = globals()[name] = _import(name)
        return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "__version__"})
