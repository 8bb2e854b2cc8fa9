"""regularizers: penalties that training adds to its loss, as pure functions."""

from opnorm.regularizers.data_dependent import (
    Penalty,
    derivative_penalty,
    difference_penalty,
    jacobian_norm,
    size_penalty,
)
from opnorm.regularizers.global_norm import (
    GlobalNorms,
    global_spectral_norm,
    init_vectors,
)
from opnorm.regularizers.input_gradient import (
    gradient_direction,
    gradient_penalty,
    jacobian_frobenius_penalty,
    slope_penalty,
)

__all__ = [
    "GlobalNorms",
    "Penalty",
    "derivative_penalty",
    "difference_penalty",
    "global_spectral_norm",
    "gradient_direction",
    "gradient_penalty",
    "init_vectors",
    "jacobian_frobenius_penalty",
    "jacobian_norm",
    "size_penalty",
    "slope_penalty",
]
