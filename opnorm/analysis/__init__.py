"""Measurements of a trained network. This room imports linalg, operators and attacks.

A network ``f`` is a function of a batch, ``(B, ...) -> (B, d)``, in inference mode and
with independent rows. It is best a callable pytree: its arrays are arguments of the
compiled programs, which serve all networks of one structure::

    f = opnorm.network(module, variables)  # Flax Linen
    f = jax.tree_util.Partial(apply, variables)  # any function of variables and a batch
    f = module  # an NNX module in evaluation mode, or an Equinox module, as it is
    analysis.evaluate_accuracy(f, images, labels)

A plain function is compiled once in each call, since the values that it closes over may
have changed since the last call. Results are those of the present values in both cases.

Attacks and losses are different: they must be pure, and each should be one object. A
new function is compiled anew, and the same function is not compiled again, **even where
values that it closes over have changed**.
"""

from opnorm.analysis.accuracy import (
    Accuracy,
    JacobianNorms,
    Spectrum,
    conditional_accuracy,
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
from opnorm.analysis.batches import in_batches
from opnorm.analysis.boundary import BoundaryDistance, boundary_distance
from opnorm.analysis.bounds import (
    Regularity,
    curvature_bound,
    lipschitz_bound,
    loss_regularity,
    violations,
)
from opnorm.analysis.densities import DensityCurve, density_curves
from opnorm.analysis.feature_spectrum import (
    RankAlignment,
    alignment_by_rank,
    singular_values,
)
from opnorm.analysis.histograms import Histograms, histograms
from opnorm.analysis.improvements import Improvement, improvement, improvement_error
from opnorm.analysis.input_hessians import InputCurvature, input_curvature
from opnorm.analysis.inputs import AttackFactory, to_pixels
from opnorm.analysis.linearity import (
    Linearity,
    activation_agreement,
    deviation_from_linearity,
    random_directions,
)
from opnorm.analysis.loss_variation import loss_variation
from opnorm.analysis.margin_distributions import (
    MarginDistribution,
    margin_distribution,
    ramp_risk,
)
from opnorm.analysis.margins import (
    gradient_norms,
    label_and_rival,
    log_released_unit,
    log_sum_exp_margin,
    margin,
    margin_loss,
    output_gain,
    probability_margin,
    ramp_loss,
    soft_margin,
    top_k_margin,
)
from opnorm.analysis.nearest import NearestPoints, nearest_points
from opnorm.analysis.outcomes import (
    Gap,
    Gaps,
    Outcomes,
    evaluate_outcomes,
    generalization_gaps,
)
from opnorm.analysis.parameter_spectra import (
    PARAMETER_MATRICES,
    Eigenvalue,
    ParameterSpectrum,
    parameter_spectrum,
)
from opnorm.analysis.quantization import Quantized, quantize
from opnorm.analysis.randomized import randomized_accuracy
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
from opnorm.analysis.targets import choose_targets
from opnorm.analysis.trends import Trend, trend
from opnorm.analysis.universal import (
    Fooling,
    Response,
    UniversalDirection,
    fooling,
    fooling_bound,
    perturbation_response,
    shuffled_directions,
    universal_direction,
)

__all__ = [
    "PARAMETER_MATRICES",
    "Accuracy",
    "AttackFactory",
    "Attacked",
    "Average",
    "BoundaryDistance",
    "Check",
    "DensityCurve",
    "Eigenvalue",
    "Fooling",
    "Gap",
    "Gaps",
    "Histograms",
    "Improvement",
    "InputCurvature",
    "JacobianNorms",
    "Linearity",
    "MarginDistribution",
    "NearestPoints",
    "Outcomes",
    "ParameterSpectrum",
    "Quantized",
    "RankAlignment",
    "Regularity",
    "Response",
    "Spectrum",
    "Trend",
    "UniversalDirection",
    "activation_agreement",
    "alignment",
    "alignment_by_rank",
    "attack_examples",
    "average",
    "boundary_distance",
    "budget_check",
    "choose_targets",
    "conditional_accuracy",
    "curvature_bound",
    "density_curves",
    "deviation_from_linearity",
    "evaluate_accuracy",
    "evaluate_outcomes",
    "expected_random_alignment",
    "fooling",
    "fooling_bound",
    "generalization_gaps",
    "gradient_norms",
    "histograms",
    "improvement",
    "improvement_error",
    "in_batches",
    "input_curvature",
    "jacobian_norms",
    "jacobian_spectrum",
    "label_and_rival",
    "lipschitz_bound",
    "log_released_unit",
    "log_sum_exp_margin",
    "loss_regularity",
    "loss_variation",
    "margin",
    "margin_distribution",
    "margin_loss",
    "nearest_points",
    "output_gain",
    "parameter_spectrum",
    "pearson_alignment",
    "perturbation_response",
    "perturbations",
    "probability_margin",
    "quantize",
    "ramp_loss",
    "ramp_risk",
    "random_directions",
    "randomized_accuracy",
    "robust_accuracy",
    "sanity_checks",
    "shuffled_directions",
    "singular_values",
    "soft_margin",
    "square_check",
    "to_pixels",
    "top_k_margin",
    "trend",
    "universal_direction",
    "violations",
    "worst_over_budgets",
]
