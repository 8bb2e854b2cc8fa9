"""Jacobians, Hessians and layers of a network as linear maps.

This room imports linalg.
"""

from opnorm.operators.capacity import (
    Capacity,
    SpectralComplexity,
    log_capacity,
    log_spectral_complexity,
)
from opnorm.operators.generalization_bound import (
    GeneralizationBound,
    log_covering_number,
    log_covering_term,
    log_generalization_bound,
)
from opnorm.operators.hessian import (
    ParameterMap,
    cross_entropy_gauss_newton,
    cross_entropy_hessian,
    gauss_newton,
    input_hessian_map,
    is_curved,
    parameter_hessian,
)
from opnorm.operators.jacobian import (
    dense_jacobian,
    dense_jacobian_chunks,
    directional_derivative,
    jacobian_map,
)
from opnorm.operators.jacobian_norm import jacobian_norm, singular_triplets
from opnorm.operators.layer_tracing import find_layers
from opnorm.operators.layers import (
    Layer,
    LayerNorms,
    layer_map,
    layer_norms,
    layer_singular_values,
    layers,
    log_lipschitz_bound,
    singular_value_std,
)
from opnorm.operators.margin_terms import MarginTerms, log_margin_terms
from opnorm.operators.regression import regressed_jacobian
from opnorm.operators.spread import (
    LayerChange,
    LayerSpreads,
    SpreadChanges,
    layer_change,
    layer_spreads,
    spread_changes,
)
from opnorm.operators.stacked import stacked_jacobian_map

__all__ = [
    "Capacity",
    "GeneralizationBound",
    "Layer",
    "LayerChange",
    "LayerNorms",
    "LayerSpreads",
    "MarginTerms",
    "ParameterMap",
    "SpectralComplexity",
    "SpreadChanges",
    "cross_entropy_gauss_newton",
    "cross_entropy_hessian",
    "dense_jacobian",
    "dense_jacobian_chunks",
    "directional_derivative",
    "find_layers",
    "gauss_newton",
    "input_hessian_map",
    "is_curved",
    "jacobian_map",
    "jacobian_norm",
    "layer_change",
    "layer_map",
    "layer_norms",
    "layer_singular_values",
    "layer_spreads",
    "layers",
    "log_capacity",
    "log_covering_number",
    "log_covering_term",
    "log_generalization_bound",
    "log_lipschitz_bound",
    "log_margin_terms",
    "log_spectral_complexity",
    "parameter_hessian",
    "regressed_jacobian",
    "singular_triplets",
    "singular_value_std",
    "spread_changes",
    "stacked_jacobian_map",
]
