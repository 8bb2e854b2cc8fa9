"""operators: a network's linear maps. Imports linalg."""

from opnorm.operators.jacobian import (
    dense_jacobian,
    dense_jacobian_chunks,
    directional_derivative,
    jacobian_map,
)
from opnorm.operators.jacobian_norm import jacobian_norm, singular_triplets

__all__ = [
    "dense_jacobian",
    "dense_jacobian_chunks",
    "directional_derivative",
    "jacobian_map",
    "jacobian_norm",
    "singular_triplets",
]
