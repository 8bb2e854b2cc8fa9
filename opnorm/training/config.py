"""training: every choice that decides the result of a training run, in one place."""

import dataclasses
import math
from typing import Any

from opnorm import data, models

METHODS = {
    "standard": "cross-entropy alone",
    "adversarial": "cross-entropy + weight x cross-entropy at PGA perturbations",
    "adversarial_only": "cross-entropy at PGA perturbations",
    "data_dependent_snr": "cross-entropy + weight x half the squared spectral norm of "
    "the Jacobian at each example",
    "data_dependent_onr": "cross-entropy + weight x the (p, q) operator norm of the "
    "Jacobian at each example",
    "global_snr": "cross-entropy + weight x half the sum of the layers' squared "
    "spectral norms",
    "interpolated": "cross-entropy + weight x (the adversarial term x (1 - mix) + the "
    "term of data_dependent_snr x mix)",
    "gradient_regularization": "cross-entropy + weight x half the squared dual norm of "
    "its gradient in the input",
}
SEARCHES = ("amortized", "dense", "iterative")
VARIANTS = ("derivative", "difference")
OPTIMIZERS = ("adam", "sgd", "rmsprop")
SCHEDULES = ("constant", "cosine", "step")
DATA_DEPENDENT = ("data_dependent_snr", "data_dependent_onr", "interpolated")
ADVERSARIAL = ("adversarial", "adversarial_only", "interpolated")
INPUT_GRADIENT = ("gradient_regularization",)


@dataclasses.dataclass(frozen=True)
class Config:
    """A training run. Lengths (epsilon, step_size) are in [0, 1] pixel units.

    Attributes:
      dataset: a name that :func:`opnorm.data.load` knows.
      data_dir: where TensorFlow Datasets keeps its data, or None.
      train_examples: how many training examples to use, or None for all.
      augment: random crop after zero padding by 4, and horizontal flip.
      model: a name that :func:`opnorm.models.create` knows.
      width: the model's width, or None for its own default.
      method: a key of ``METHODS``.
      p: exponent of the norm of perturbations, in [1, inf].
      q: exponent of the norm of logits for "data_dependent_onr", in [1, inf].
      epsilon: length of the perturbations of attack and penalty, in [0, 1] pixel
        units.
      weight: lambda, the factor of the method's term. Its conventions are those of
        Roth et al. 2020 (Eqs. 5, 7, 13, 14): squared penalties carry a 1/2, and the
        adversarial term is added to the clean one.
      mix: of "interpolated", in [0, 1]: 0 is "adversarial", 1 "data_dependent_snr".
      difference_step: of "gradient_regularization": h, the L2 length of its finite
        difference, in [0, 1] pixel units.
      divide_by_size: of "gradient_regularization": the squared norm divided by the
        number of pixels, which Finlay & Oberman use against Linf.
      num_steps: steps of the attack, of the search with search="iterative" (power
        steps; for "dense" with exponents other than 2 steps on the dense Jacobian),
        or of "global_snr" in each update.
      step_size: step of the attack; None for 2 epsilon / num_steps.
      search: how the direction of the penalty is found; see
        :mod:`opnorm.training.methods`.
      variant: "derivative" penalises epsilon ||J v||, "difference"
        ||f(x + epsilon v) - f(x)||.
      penalty_fraction: part of each batch that the "difference" penalty is taken on, in
        (0, 1]; its mean over that part is an unbiased estimate at a lower cost.
      optimizer: one of ``OPTIMIZERS``.
      learning_rate: the largest one.
      schedule: "constant", "cosine" to zero, or "step": times 0.1 after 1/2 and 3/4
        of the steps.
      momentum: of "sgd".
      weight_decay: an L2 term on all parameters, added to the gradient before
        momentum or normalisation.
      clip_norm: largest global norm of the gradient, or None.
      epochs: passes over the training examples.
      batch_size: examples per step over all devices; an incomplete last batch is
        left out.
      seed: of initialisation, order, augmentation and starts.
      init_from: run directory or checkpoint whose parameters and BatchNorm statistics
        to start from, or None.
    """

    dataset: str = "cifar10_mini"
    data_dir: str | None = None
    train_examples: int | None = None
    augment: bool = True
    model: str = "cnn7"
    width: int | None = 16
    method: str = "standard"
    p: float = 2.0
    q: float = 2.0
    epsilon: float = 0.5
    weight: float = 1.0
    mix: float = 0.5
    difference_step: float = 0.01
    divide_by_size: bool = False
    num_steps: int = 10
    step_size: float | None = None
    search: str = "amortized"
    variant: str = "difference"
    penalty_fraction: float = 0.5
    optimizer: str = "adam"
    learning_rate: float = 2e-3
    schedule: str = "cosine"
    momentum: float = 0.9
    weight_decay: float = 0.0
    clip_norm: float | None = None
    epochs: int = 6
    batch_size: int = 64
    seed: int = 0
    init_from: str | None = None


def validate(config: Config) -> None:
    """Raises ValueError at the first value or combination that cannot be trained.

    Reads no data and builds no array. The message names the field, what was given and
    what is allowed.
    """
    _one_of("method", config.method, METHODS)
    data.check_name(config.dataset)
    _one_of("model", config.model, models.NAMES)
    _one_of("search", config.search, SEARCHES)
    _one_of("variant", config.variant, VARIANTS)
    _one_of("optimizer", config.optimizer, OPTIMIZERS)
    _one_of("schedule", config.schedule, SCHEDULES)
    for name in ("epochs", "batch_size", "num_steps"):
        _at_least(name, getattr(config, name), 1)
    for name in ("width", "train_examples"):
        if getattr(config, name) is not None:
            _at_least(name, getattr(config, name), 1)
    for name in ("epsilon", "weight", "weight_decay", "momentum"):
        _at_least(name, getattr(config, name), 0)
    for name in ("learning_rate", "clip_norm", "step_size", "difference_step"):
        value = getattr(config, name)
        infinite = name == "step_size" and value == math.inf
        if value is not None and not infinite and not 0 < value < math.inf:
            raise ValueError(f"{name} is {value}; it must be positive and finite.")
    if config.seed < 0:
        raise ValueError(f"seed is {config.seed}; it must be at least 0.")
    for name in ("p", "q"):
        if not getattr(config, name) >= 1:
            raise ValueError(
                f"{name} is {getattr(config, name)}; it must be in [1, inf]."
            )
    if config.momentum >= 1:
        raise ValueError(f"momentum is {config.momentum}; it must be in [0, 1).")
    spectral = config.method in ("data_dependent_snr", "interpolated")
    if spectral and (config.p, config.q) != (2, 2):
        raise ValueError(
            f"method {config.method!r} is for the (2, 2) norm, and p, q are "
            f"{config.p}, {config.q}; for others use method 'data_dependent_onr'."
        )
    if not 0 <= config.mix <= 1:
        raise ValueError(f"mix is {config.mix}; it must be in [0, 1].")
    if config.method == "interpolated" and config.variant != "difference":
        raise ValueError(
            f"variant is {config.variant!r}; the method 'interpolated' has only "
            "'difference'."
        )
    if not 0 < config.penalty_fraction <= 1:
        raise ValueError(
            f"penalty_fraction is {config.penalty_fraction}; it must be in (0, 1]."
        )
    # What belongs to some methods is refused for the others, unless left as it is.
    for name, methods in {
        "search": DATA_DEPENDENT,
        "variant": DATA_DEPENDENT,
        "penalty_fraction": (*DATA_DEPENDENT, *INPUT_GRADIENT),
        "difference_step": INPUT_GRADIENT,
        "divide_by_size": INPUT_GRADIENT,
        "mix": ("interpolated",),
    }.items():
        value = getattr(config, name)
        if config.method not in methods and value != getattr(Config(), name):
            raise ValueError(
                f"{name} is {value!r}, which the method {config.method!r} does not "
                f"use; it belongs to {' and '.join(methods)}."
            )
    if config.method not in ADVERSARIAL and config.step_size is not None:
        raise ValueError(
            f"step_size is {config.step_size}, which the method {config.method!r} does "
            f"not use; it belongs to {' and '.join(ADVERSARIAL)}."
        )


def _one_of(name: str, value: Any, allowed: Any) -> None:
    if value not in allowed:
        raise ValueError(f"{name} is {value!r}; it may be {', '.join(allowed)}.")


def _at_least(name: str, value: float, least: float) -> None:
    if not least <= value < math.inf:
        raise ValueError(f"{name} is {value}; it must be finite and at least {least}.")
