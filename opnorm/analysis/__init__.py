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
from opnorm.analysis.robustness import (
    Attacked,
    attack_examples,
    worst_over_budgets,
)
from opnorm.analysis.sanity import Check, sanity_checks, square_check

__all__ = [
    "Accuracy",
    "Attacked",
    "Check",
    "JacobianNorms",
    "Spectrum",
    "alignment",
    "attack_examples",
    "evaluate_accuracy",
    "expected_random_alignment",
    "jacobian_norms",
    "jacobian_spectrum",
    "pearson_alignment",
    "perturbations",
    "robust_accuracy",
    "sanity_checks",
    "square_check",
    "worst_over_budgets",
]
