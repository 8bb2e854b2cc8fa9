"""The examples in docstrings run, and the names that a user meets first have one."""

import doctest
import importlib
import pkgutil

import pytest

import opnorm

# Names that must have an example, such as "network" or "linalg.norm".
REQUIRED = (
    "attacks.Attack",
    "attacks.apgd",
    "attacks.auto_attack",
    "attacks.carlini_wagner",
    "attacks.decoupled_direction",
    "attacks.deepfool",
    "attacks.default_step_size",
    "attacks.fab",
    "attacks.fast_minimum_norm",
    "attacks.make",
    "attacks.pga",
    "attacks.square",
    "analysis.alignment",
    "analysis.attack_examples",
    "analysis.average",
    "analysis.boundary_distance",
    "analysis.budget_check",
    "analysis.conditional_accuracy",
    "analysis.density_curves",
    "analysis.evaluate_outcomes",
    "analysis.generalization_gaps",
    "analysis.histograms",
    "analysis.improvement",
    "analysis.input_curvature",
    "analysis.lipschitz_bound",
    "analysis.loss_variation",
    "analysis.margin",
    "analysis.margin_distribution",
    "analysis.nearest_points",
    "analysis.ramp_loss",
    "analysis.ramp_risk",
    "analysis.quantize",
    "analysis.robust_accuracy",
    "analysis.singular_values",
    "analysis.universal_direction",
    "data.Dataset",
    "data.batch_indices",
    "data.load",
    "data.sample_augmentation",
    "linalg.LinearMap",
    "linalg.circular_singular_values",
    "linalg.convolution_norm_bounds",
    "linalg.dual_map",
    "linalg.golub_kahan",
    "linalg.lanczos",
    "linalg.matrix_norm",
    "linalg.network_program",
    "linalg.operator_norm",
    "linalg.project_ball",
    "linalg.spectral_density",
    "models.create",
    "models.network",
    "operators.dense_jacobian",
    "operators.find_layers",
    "operators.input_hessian_map",
    "operators.jacobian_map",
    "operators.jacobian_norm",
    "operators.layer_change",
    "operators.layer_spreads",
    "operators.layers",
    "operators.log_covering_number",
    "operators.log_covering_term",
    "operators.log_generalization_bound",
    "operators.log_lipschitz_bound",
    "operators.log_margin_terms",
    "operators.log_spectral_complexity",
    "operators.singular_value_std",
    "operators.spread_changes",
    "regularizers.LinenSpectralNorm",
    "regularizers.SpectralNorm",
    "regularizers.difference_penalty",
    "regularizers.gradient_penalty",
    "regularizers.jacobian_norm",
    "regularizers.spectral_normalize",
    "training.Config",
    "training.get_grid",
    "training.get_preset",
    "training.in_pixels",
    "training.validate",
    "network",
)


def modules():
    for found in pkgutil.walk_packages(opnorm.__path__, "opnorm."):
        yield importlib.import_module(found.name)


def examples():
    """Every docstring of the library that has an example, once."""
    finder = doctest.DocTestFinder(exclude_empty=True)
    return [
        test
        for module in modules()
        for test in finder.find(module, module.__name__)
        if test.examples
    ]


EXAMPLES = examples()


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.name)
def test_the_example_runs(example):
    report = []
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    result = runner.run(example, out=report.append)
    assert result.failed == 0, "".join(report)


def test_the_required_names_have_an_example():
    missing = [name for name in REQUIRED if ">>> " not in documentation(name)]
    assert missing == []


def documentation(name):
    room, _, attribute = name.rpartition(".")
    module = importlib.import_module(f"opnorm.{room}".rstrip("."))
    return getattr(module, attribute).__doc__ or ""


def test_a_wrong_example_fails():
    """The runner compares: an example whose output is wrong is counted."""
    wrong = doctest.DocTestParser().get_doctest(">>> 1 + 1\n3\n", {}, "wrong", None, 0)
    result = doctest.DocTestRunner().run(wrong, out=lambda text: None)
    assert result.failed == 1
