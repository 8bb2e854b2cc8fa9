"""training: which configurations can be trained, said before anything is read."""

import dataclasses
import math
from typing import Any

from opnorm import data, models
from opnorm.training import plan
from opnorm.training.config import (
    ADVERSARIAL,
    ATTACK_LABELS,
    COMPUTE_DTYPES,
    DATA_DEPENDENT,
    DECAYED,
    INPUT_GRADIENT,
    METHODS,
    OPTIMIZERS,
    SCHEDULES,
    SEARCHES,
    SPECTRAL_NORM_METHODS,
    VARIANTS,
    Config,
)

_LARGEST_SEED = 2**32 - 1
# More than any of the sizes and counts that can be trained.
_LARGEST_COUNT = 2**31 - 1


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
    _one_of("attack_labels", config.attack_labels, ATTACK_LABELS)
    _one_of("spectral_norm_method", config.spectral_norm_method, SPECTRAL_NORM_METHODS)
    for name in (
        "epochs",
        "batch_size",
        "num_steps",
        "accumulation_steps",
        "spectral_norm_steps",
    ):
        _at_least(name, getattr(config, name), 1)
    for name in ("width", "train_examples", "image_size"):
        if getattr(config, name) is not None:
            _at_least(name, getattr(config, name), 1)
    for name, value in dataclasses.asdict(config).items():
        if isinstance(value, int) and name != "seed" and value > _LARGEST_COUNT:
            raise ValueError(f"{name} is {value}; it must be at most {_LARGEST_COUNT}.")
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
        "gamma",
    ):
        value = getattr(config, name)
        infinite = name == "step_size" and value == math.inf
        if value is not None and not infinite and not 0 < value < math.inf:
            raise ValueError(f"{name} is {value}; it must be positive and finite.")
    # JAX would take a larger one for another, smaller one.
    if not 0 <= config.seed <= _LARGEST_SEED:
        raise ValueError(
            f"seed is {config.seed}; it must be at least 0 and at most {_LARGEST_SEED}."
        )
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
    _check_spectral_norm(config)
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
        "attack_labels": (*ADVERSARIAL, "wrm"),
        "gamma": ("wrm",),
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


def _check_spectral_norm(config: Config) -> None:
    bound, method = config.spectral_norm_bound, config.spectral_norm_method
    for name in ("spectral_norm_method", "spectral_norm_steps"):
        value = getattr(config, name)
        if bound is None and value != getattr(Config(), name):
            raise ValueError(
                f"{name} is {value!r}; without spectral_norm_bound it has no use."
            )
    if method == "clip" and config.spectral_norm_steps != 1:
        raise ValueError(
            f"spectral_norm_steps is {config.spectral_norm_steps}, which the "
            "spectral_norm_method 'clip' does not use."
        )
    if bound is None:
        return
    if not bound > 0 or (math.isinf(bound) and method == "clip"):
        allowed = "positive and finite" if method == "clip" else "positive"
        raise ValueError(f"spectral_norm_bound is {bound}; it must be {allowed}.")


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
        for name in ("padding", "cutout", "random_labels"):
            if getattr(config, name) != getattr(default, name):
                raise ValueError(
                    f"{name} is {getattr(config, name)!r}; it is for data in memory, "
                    "and streamed data are cropped and resized."
                )
    else:
        for name in ("least_area", "phases"):
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
    if not 0 <= config.random_labels <= 1:
        raise ValueError(
            f"random_labels is {config.random_labels}; it must be in [0, 1]."
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
