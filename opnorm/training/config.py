"""training: every choice that decides the result of a training run, in one place."""

import dataclasses
import math
from typing import Any

from opnorm import data, models
from opnorm.training import plan

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
SCHEDULES = ("constant", "cosine", "step", "linear")
COMPUTE_DTYPES = ("float32", "bfloat16")
DECAYED = ("all", "kernels_and_scales")
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
      augment: random crop after padding by 4, and horizontal flip; of streamed data,
        random resized crop and flip, without which they are cropped at the centre.
      padding: what the crop pads with: "zero", "reflect" or "grey".
      cutout: side of the square of each picture that is painted over, 0 for none.
      image_size: height and width of streamed pictures; None for 224. Data in memory
        have their own.
      least_area: least part of a streamed picture that a random crop takes, in (0, 1].
      phases: of streamed data, sizes that change during the training, as "first
        epoch:image size:batch size:least area" with commas between, such as
        "0:128:512:0.08,15:224:192:0.087"; they replace image_size, batch_size and
        least_area.
      model: a name that :func:`opnorm.models.create` knows.
      width: the model's width, or None for its own default.
      activation: "relu" or "smooth_relu".
      logit_activation: of "resnext34": the activation on the logits too, as published.
      normalization: what the network does to pixels, a name in
        :data:`opnorm.models.STATISTICS`.
      compute_dtype: what the network computes in; parameters, BatchNorm statistics,
        logits and losses are float32 in any case.
      rematerialize: compute activations again in the backward pass, for less memory.
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
      random_start: whether the attack starts at a random point of the ball.
      search: how the direction of the penalty is found; see
        :mod:`opnorm.training.methods`.
      variant: "derivative" penalises epsilon ||J v||, "difference"
        ||f(x + epsilon v) - f(x)||.
      penalty_fraction: part of each batch that the "difference" penalty is taken on, in
        (0, 1]; its mean over that part is an unbiased estimate at a lower cost.
      optimizer: one of ``OPTIMIZERS``.
      learning_rate: the largest one.
      schedule: "constant", "cosine" to zero, "step": times decay_factor after each of
        the milestones, or "linear" between the points of learning_rates.
      milestones: of "step": epochs with commas between, such as "60,120,160"; None for
        1/2 and 3/4 of the epochs.
      decay_factor: of "step".
      learning_rates: of "linear": "epoch:rate" with commas between, from epoch 0 to
        the last; an epoch given twice is a jump. They replace learning_rate.
      warmup_epochs: the learning rate rises linearly from 0 over the first epochs.
      momentum: of "sgd".
      nesterov: of "sgd".
      weight_decay: an L2 term, added to the gradient before momentum or
        normalisation.
      decayed: which parameters the weight decay is on: "all", or "kernels_and_scales",
        all but biases.
      clip_norm: largest global norm of the gradient, or None.
      epochs: passes over the training examples.
      batch_size: examples per update over all devices; an incomplete last batch is
        left out.
      accumulation_steps: parts that a batch is computed in, one after the other, for
        less memory. BatchNorm and the method see each part by itself.
      seed: of initialisation, order, augmentation and starts.
      init_from: run directory or checkpoint whose parameters and BatchNorm statistics
        to start from, or None.
    """

    dataset: str = "cifar10_mini"
    data_dir: str | None = None
    train_examples: int | None = None
    augment: bool = True
    padding: str = "zero"
    cutout: int = 0
    image_size: int | None = None
    least_area: float = 0.08
    phases: str | None = None
    model: str = "cnn7"
    width: int | None = 16
    activation: str = "relu"
    logit_activation: bool = False
    normalization: str = "half"
    compute_dtype: str = "float32"
    rematerialize: bool = False
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
    random_start: bool = True
    search: str = "amortized"
    variant: str = "difference"
    penalty_fraction: float = 0.5
    optimizer: str = "adam"
    learning_rate: float = 2e-3
    schedule: str = "cosine"
    milestones: str | None = None
    decay_factor: float = 0.1
    learning_rates: str | None = None
    warmup_epochs: float = 0.0
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 0.0
    decayed: str = "all"
    clip_norm: float | None = None
    epochs: int = 6
    batch_size: int = 64
    accumulation_steps: int = 1
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
    _one_of("activation", config.activation, models.ACTIVATIONS)
    _one_of("normalization", config.normalization, models.STATISTICS)
    _one_of("compute_dtype", config.compute_dtype, COMPUTE_DTYPES)
    _one_of("decayed", config.decayed, DECAYED)
    _one_of("padding", config.padding, data.PADDINGS)
    for name in ("epochs", "batch_size", "num_steps", "accumulation_steps"):
        _at_least(name, getattr(config, name), 1)
    for name in ("width", "train_examples", "image_size"):
        if getattr(config, name) is not None:
            _at_least(name, getattr(config, name), 1)
    for name in (
        "epsilon",
        "weight",
        "weight_decay",
        "momentum",
        "warmup_epochs",
        "cutout",
    ):
        _at_least(name, getattr(config, name), 0)
    for name in (
        "learning_rate",
        "clip_norm",
        "step_size",
        "difference_step",
        "decay_factor",
    ):
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
    _check_learning_rate(config)
    _check_data(config)
    if config.method in INPUT_GRADIENT and config.compute_dtype != "float32":
        raise ValueError(
            f"compute_dtype is {config.compute_dtype!r}; a finite difference of step "
            f"{config.difference_step} would be rounding. The method "
            f"{config.method!r} needs float32."
        )
    # Refuses what this model does not have; nothing is allocated.
    models.create(
        config.model,
        width=config.width,
        activation=config.activation,
        rematerialize=config.rematerialize,
        logit_activation=config.logit_activation,
    )
    # What belongs to some methods is refused for the others, unless left as it is.
    for name, methods in {
        "search": DATA_DEPENDENT,
        "variant": DATA_DEPENDENT,
        "penalty_fraction": (*DATA_DEPENDENT, *INPUT_GRADIENT),
        "difference_step": INPUT_GRADIENT,
        "divide_by_size": INPUT_GRADIENT,
        "mix": ("interpolated",),
        "random_start": ADVERSARIAL,
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


def _check_learning_rate(config: Config) -> None:
    """What belongs to another schedule or optimiser is refused."""
    for name, needed, given in (
        ("milestones", ("schedule", "step"), config.milestones is not None),
        ("decay_factor", ("schedule", "step"), config.decay_factor != 0.1),
        ("learning_rates", ("schedule", "linear"), config.learning_rates is not None),
        ("nesterov", ("optimizer", "sgd"), config.nesterov),
        ("decayed", ("weight_decay", None), config.decayed != "all"),
    ):
        owner, value = needed
        found = getattr(config, owner)
        if given and (found != value if value else not found):
            raise ValueError(
                f"{name} is {getattr(config, name)!r}, which {owner} {found!r} does "
                f"not use{f'; it belongs to {value!r}' if value else ''}."
            )
    if config.schedule == "linear":
        if config.learning_rates is None:
            raise ValueError("learning_rates is not given; schedule 'linear' needs it.")
        last = plan.parse_rates(config.learning_rates)[-1][0]
        if last != config.epochs:
            raise ValueError(
                f"learning_rates is {config.learning_rates!r}; it must end with the "
                f"{config.epochs} epochs."
            )
    if config.milestones is not None:
        plan.parse_milestones(config.milestones)
    if config.nesterov and not config.momentum:
        raise ValueError("nesterov is True; it needs a momentum above 0.")
    if config.warmup_epochs > config.epochs:
        raise ValueError(
            f"warmup_epochs is {config.warmup_epochs}; it may be at most the "
            f"{config.epochs} epochs."
        )


def _check_data(config: Config) -> None:
    """Sizes of batches and pictures fit each other and the data set."""
    default = Config()
    if data.is_streamed(config.dataset):
        for name in ("padding", "cutout"):
            if getattr(config, name) != getattr(default, name):
                raise ValueError(
                    f"{name} is {getattr(config, name)!r}; streamed data are cropped "
                    "and resized instead."
                )
    else:
        for name in ("image_size", "least_area", "phases"):
            if getattr(config, name) != getattr(default, name):
                raise ValueError(
                    f"{name} is {getattr(config, name)!r}; the data set "
                    f"{config.dataset!r} is not streamed."
                )
    if not config.augment and (config.padding, config.cutout) != ("zero", 0):
        raise ValueError(
            f"padding, cutout are {config.padding!r}, {config.cutout}; without "
            "augment they have no use."
        )
    if not 0 < config.least_area <= 1:
        raise ValueError(f"least_area is {config.least_area}; it must be in (0, 1].")
    batch_sizes = [config.batch_size]
    if config.phases is not None:
        phases = plan.parse_phases(config.phases)
        if phases[-1][0] >= config.epochs:
            raise ValueError(
                f"phases is {config.phases!r}; the last must begin before the "
                f"{config.epochs} epochs end."
            )
        for name in ("image_size", "batch_size", "least_area"):
            if getattr(config, name) != getattr(default, name):
                raise ValueError(
                    f"{name} is {getattr(config, name)!r}; with phases they decide it."
                )
        batch_sizes = [size for _, _, size, _ in phases]
    for size in batch_sizes:
        if size % config.accumulation_steps:
            raise ValueError(
                f"accumulation_steps is {config.accumulation_steps}; it must divide "
                f"the batch size, {size}."
            )


def _one_of(name: str, value: Any, allowed: Any) -> None:
    if value not in allowed:
        raise ValueError(f"{name} is {value!r}; it may be {', '.join(allowed)}.")


def _at_least(name: str, value: float, least: float) -> None:
    if not least <= value < math.inf:
        raise ValueError(f"{name} is {value}; it must be finite and at least {least}.")
