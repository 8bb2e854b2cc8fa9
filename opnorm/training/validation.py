"""The configurations that can be trained, checked before anything is read."""

import dataclasses
import math
from collections.abc import Collection

from opnorm import data, models
from opnorm.training import methods, notation
from opnorm.training.config import (
    ATTACK_LABELS,
    COMPUTE_DTYPES,
    DECAYED,
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

# Allowed values of the fields that hold a name.
_CHOICES: dict[str, Collection[str]] = {
    "method": methods.METHODS,
    "model": models.NAMES,
    "search": SEARCHES,
    "variant": VARIANTS,
    "optimizer": OPTIMIZERS,
    "schedule": SCHEDULES,
    "activation": models.ACTIVATIONS,
    "normalization": models.STATISTICS,
    "compute_dtype": COMPUTE_DTYPES,
    "decayed": DECAYED,
    "padding": data.PADDINGS,
    "attack_labels": ATTACK_LABELS,
    "spectral_norm_method": SPECTRAL_NORM_METHODS,
}
# Least values of the fields that hold a number; None is allowed for some.
_LEAST = {
    "epochs": 1,
    "batch_size": 1,
    "num_steps": 1,
    "accumulation_steps": 1,
    "spectral_norm_steps": 1,
    "width": 1,
    "train_examples": 1,
    "image_size": 1,
    "epsilon": 0,
    "weight": 0,
    "weight_decay": 0,
    "momentum": 0,
    "warmup_epochs": 0,
    "cutout": 0,
}
_POSITIVE = (
    "learning_rate",
    "clip_norm",
    "step_size",
    "difference_step",
    "decay_factor",
    "gamma",
)


def validate(config: Config) -> None:
    """Raises ValueError at the first value or combination that cannot be trained.

    Reads no data and builds no array. The message names the field, the given value and
    the allowed ones::

        >>> from opnorm import training
        >>> training.validate(training.Config(method="adversarial", epsilon=0.5))
        >>> training.validate(training.Config(mix=0.25))
        Traceback (most recent call last):
        ...
        ValueError: mix is 0.25, which the method 'standard' does not use; it belongs \
to interpolated.
    """
    for name, allowed in _CHOICES.items():
        value = getattr(config, name)
        if value not in allowed:
            raise ValueError(f"{name} is {value!r}; it may be {', '.join(allowed)}.")
    data.check_name(config.dataset)
    _check_numbers(config)
    _check_spectral_norm(config)
    _check_learning_rate(config)
    _check_data(config)
    _check_lists(config)
    # Refuses options that the model does not have; nothing is allocated.
    models.create(
        config.model,
        width=config.width,
        activation=config.activation,
        rematerialize=config.rematerialize,
        logit_activation=config.logit_activation,
    )
    methods.check(config)


def _check_numbers(config: Config) -> None:
    """Raises ValueError for a number outside its range."""
    for name, value in dataclasses.asdict(config).items():
        if isinstance(value, int) and name != "seed" and value > _LARGEST_COUNT:
            raise ValueError(f"{name} is {value}; it must be at most {_LARGEST_COUNT}.")
    for name, least in _LEAST.items():
        value = getattr(config, name)
        if value is not None and not least <= value < math.inf:
            raise ValueError(
                f"{name} is {value}; it must be finite and at least {least}."
            )
    for name in _POSITIVE:
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
    for name in ("mix", "random_labels"):
        value = getattr(config, name)
        if not 0 <= value <= 1:
            raise ValueError(f"{name} is {value}; it must be in [0, 1].")
    for name in ("penalty_fraction", "least_area"):
        value = getattr(config, name)
        if not 0 < value <= 1:
            raise ValueError(f"{name} is {value}; it must be in (0, 1].")


def _check_spectral_norm(config: Config) -> None:
    """Raises ValueError for a bound that cannot be kept, or options without one."""
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
    """Raises ValueError for fields of another schedule or optimiser."""
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
    if config.nesterov and not config.momentum:
        raise ValueError("nesterov is True; it needs a momentum above 0.")
    if config.warmup_epochs > config.epochs:
        raise ValueError(
            f"warmup_epochs is {config.warmup_epochs}; it may be at most the "
            f"{config.epochs} epochs."
        )


def _check_data(config: Config) -> None:
    """Raises ValueError for views that do not fit the data set."""
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
    if config.phases is not None:
        for name in ("image_size", "batch_size", "least_area"):
            if getattr(config, name) != getattr(default, name):
                raise ValueError(
                    f"{name} is {getattr(config, name)!r}; with phases they decide it."
                )


def _check_lists(config: Config) -> None:
    """Raises ValueError for lists that do not fit the epochs, and sizes of batches."""
    if config.schedule == "linear":
        if config.learning_rates is None:
            raise ValueError("learning_rates is not given; schedule 'linear' needs it.")
        last = notation.parse_rates(config.learning_rates)[-1][0]
        if last != config.epochs:
            raise ValueError(
                f"learning_rates is {config.learning_rates!r}; it must end with the "
                f"{config.epochs} epochs."
            )
    if config.milestones is not None:
        notation.parse_milestones(config.milestones)
    batch_sizes = [config.batch_size]
    if config.phases is not None:
        phases = notation.parse_phases(config.phases)
        if phases[-1][0] >= config.epochs:
            raise ValueError(
                f"phases is {config.phases!r}; the last must begin before the "
                f"{config.epochs} epochs end."
            )
        batch_sizes = [size for _, _, size, _ in phases]
    for size in batch_sizes:
        if size % config.accumulation_steps:
            raise ValueError(
                f"accumulation_steps is {config.accumulation_steps}; it must divide "
                f"the batch size, {size}."
            )
