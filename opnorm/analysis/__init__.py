"""analysis: measurements of a trained network. Imports linalg, operators, attacks."""

from opnorm.analysis.accuracy import (
    Accuracy,
    JacobianNorms,
    Spectrum,
    evaluate_accuracy,
    jacobian_norms,
    jacobian_spectrum,
    perturbations,
    robust_accuracy,
)
from opnorm.analysis.alignment import (
    alignment,
    expected_random_alignment,
    pearson_alignment,
)

__all__ = [
    "Accuracy",
    "JacobianNorms",
    "Spectrum",
    "alignment",
    "evaluate_accuracy",
    "expected_random_alignment",
    "jacobian_norms",
    "jacobian_spectrum",
    "pearson_alignment",
    "perturbations",
    "robust_accuracy",
]
