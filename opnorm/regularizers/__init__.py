"""Penalties on a loss and bounds on weights, as pure functions.

This room imports linalg and operators.
"""

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
from opnorm.regularizers.spectral_layers import LinenSpectralNorm, SpectralNorm
from opnorm.regularizers.spectral_normalization import (
    NormalizedParameters,
    clip_spectral_norms,
    init_spectral_vectors,
    spectral_normalize,
)

__all__ = [
    "GlobalNorms",
    "LinenSpectralNorm",
    "NormalizedParameters",
    "Penalty",
    "SpectralNorm",
    "clip_spectral_norms",
    "derivative_penalty",
    "difference_penalty",
    "global_spectral_norm",
    "gradient_direction",
    "gradient_penalty",
    "init_spectral_vectors",
    "init_vectors",
    "jacobian_frobenius_penalty",
    "jacobian_norm",
    "size_penalty",
    "slope_penalty",
    "spectral_normalize",
]
