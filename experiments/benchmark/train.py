"""The cost of train steps of CNN7 by method."""

from typing import Any

from experiments.benchmark.setting import Found, Setting, cnn7_program, read_batch
from experiments.benchmark.steps import TrainStep
from experiments.common import timing
from experiments.common.train_steps import STANDARD

_ADVERSARIAL = "adversarial step"
_SNR = {"method": "data_dependent_snr", "num_steps": 10}
_WHOLE = {"penalty_fraction": 1.0}
_GRADIENT = {"method": "gradient_regularization"}
# Fields of Config by the name of the step.
_STEPS: dict[str, dict[str, Any]] = {
    STANDARD: {"method": "standard"},
    _ADVERSARIAL: {"method": "adversarial", "num_steps": 10},
    "adversarial-only step": {"method": "adversarial_only", "num_steps": 10},
    "SNR, 10 power steps": {**_SNR, **_WHOLE, "search": "iterative"},
    "SNR, exact dense": {**_SNR, **_WHOLE, "search": "dense"},
    "SNR, amortized": _SNR,
    "SNR, amortized, whole batch": {**_SNR, **_WHOLE},
    "SNR, amortized, derivative": {**_SNR, "variant": "derivative"},
    "global SNR step": {"method": "global_snr", "num_steps": 1},
    "spectral normalisation": {"spectral_norm_bound": 1.0},
    "gradient regularisation": _GRADIENT,
    "gradient regularisation, whole batch": {**_GRADIENT, **_WHOLE},
}
_TO_ADVERSARIAL = ("SNR, 10 power steps", "SNR, exact dense", "SNR, amortized")
_TO_STANDARD = (
    "SNR, amortized",
    "SNR, amortized, whole batch",
    "SNR, amortized, derivative",
    "global SNR step",
    "spectral normalisation",
    "gradient regularisation",
    "gradient regularisation, whole batch",
)


def measure(setting: Setting) -> Found:
    """Times a step of each method, augmentation included."""
    batch = read_batch(setting.batch_size)
    steps = {}
    for name, fields in _STEPS.items():
        program = cnn7_program(setting, augment=True, **fields)
        steps[name] = TrainStep(setting, name, program, "", *batch)
    rounds = setting.take_turns(steps)
    ratios = timing.ratios(
        rounds,
        (_ADVERSARIAL, STANDARD),
        *((name, _ADVERSARIAL) for name in _TO_ADVERSARIAL),
        *((name, STANDARD) for name in _TO_STANDARD),
    )
    return Found(timing.medians(rounds), ratios)
