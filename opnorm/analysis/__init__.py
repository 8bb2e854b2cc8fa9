"""Measurements of a trained network. Imports linalg, operators, attacks.

A network is given as ``apply(variables, x)`` and its variables, and ``apply`` must be
pure: it is compiled once, with the values that it closes over at that time, and found
again by being the same object. Whatever may change must be in ``variables``. Where
weights outside of them are changed in place, results go on being those of the old ones,
**without an error**. So a Flax NNX module is taken apart first::

    module.eval()
    graph = nnx.graphdef(module)

    def apply(state, x):
        return nnx.merge(graph, state)(x)

    analysis.evaluate_accuracy(apply, nnx.state(module), images, labels)

The same holds for attacks and losses. Each should be one object, and not a new function
each time, which would be compiled each time.
"""

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
from opnorm.analysis.averages import Average, average
from opnorm.analysis.bounds import (
    Regularity,
    curvature_bound,
    label_and_rival,
    lipschitz_bound,
    log_sum_exp_margin,
    loss_regularity,
    probability_margin,
    soft_margin,
    top_k_margin,
    violations,
)
from opnorm.analysis.curvature import (
    Eigenvalue,
    InputCurvature,
    ParameterSpectrum,
    input_curvature,
    parameter_spectrum,
)
from opnorm.analysis.feature_spectrum import (
    RankAlignment,
    alignment_by_rank,
    singular_values,
)
from opnorm.analysis.linearity import (
    Linearity,
    activation_agreement,
    deviation_from_linearity,
    random_directions,
)
from opnorm.analysis.margins import (
    gradient_norms,
    margin,
    margin_loss,
    output_gain,
    ramp_loss,
)
from opnorm.analysis.robustness import (
    Attacked,
    attack_examples,
    worst_over_budgets,
)
from opnorm.analysis.sanity import (
    Check,
    budget_check,
    sanity_checks,
    square_check,
)

__all__ = [
    "Accuracy",
    "Attacked",
    "Average",
    "Check",
    "Eigenvalue",
    "InputCurvature",
    "JacobianNorms",
    "Linearity",
    "ParameterSpectrum",
    "RankAlignment",
    "Regularity",
    "Spectrum",
    "activation_agreement",
    "alignment",
    "alignment_by_rank",
    "attack_examples",
    "average",
    "budget_check",
    "curvature_bound",
    "deviation_from_linearity",
    "evaluate_accuracy",
    "expected_random_alignment",
    "gradient_norms",
    "input_curvature",
    "jacobian_norms",
    "jacobian_spectrum",
    "label_and_rival",
    "lipschitz_bound",
    "log_sum_exp_margin",
    "loss_regularity",
    "margin",
    "margin_loss",
    "output_gain",
    "parameter_spectrum",
    "pearson_alignment",
    "perturbations",
    "probability_margin",
    "ramp_loss",
    "random_directions",
    "robust_accuracy",
    "sanity_checks",
    "singular_values",
    "soft_margin",
    "square_check",
    "top_k_margin",
    "violations",
    "worst_over_budgets",
]
