"""The losses that a network can be trained with, by name."""

from opnorm.training.methods.method import Auxiliary, Batch, Definition, Loss, Method
from opnorm.training.methods.table import (
    METHODS,
    TABLE,
    attack,
    check,
    create,
    methods_with,
)

__all__ = [
    "METHODS",
    "TABLE",
    "Auxiliary",
    "Batch",
    "Definition",
    "Loss",
    "Method",
    "attack",
    "check",
    "create",
    "methods_with",
]
