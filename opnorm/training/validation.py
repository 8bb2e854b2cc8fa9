"""The configurations that can be trained, checked before anything is read."""

import dataclasses
import math

from opnorm import data, models
from opnorm.training import methods, notation, ranges, units
from opnorm.training.config import (
    COMPUTE_DTYPES,
    DECAYED,
    EPSILON_UNITS,
    OPTIMIZERS,
    SCHEDULES,
    SPECTRAL_NORM_METHODS,
    Config,
)
from opnorm.training.ranges import Range, at_least, one_of, optional

# JAX would take a larger seed for another, smaller one.
_LARGEST_SEED = 2**32 - 1
# More than any of the sizes and counts that can be trained.
_LARGEST_COUNT = 2**31 - 1
# The fields that all methods use; the others have theirs in the table of methods.
_RANGES = {
    "method": one_of(methods.METHODS),
    "model": one_of(models.NAMES),
    "optimizer": one_of(OPTIMIZERS),
    "schedule": one_of(SCHEDULES),
    "activation": one_of(models.ACTIVATIONS),
    "normalization": one_of(models.STATISTICS),
    "compute_dtype": one_of(COMPUTE_DTYPES),
    "decayed": one_of(DECAYED),
    "epsilon_unit": one_of(EPSILON_UNITS),
    "padding": one_of(data.PADDINGS),
    "spectral_norm_method": one_of(SPECTRAL_NORM_METHODS),
    "epochs": at_least(1),
    "batch_size": at_least(1),
    "num_steps": at_least(1),
    "accumulation_steps": at_least(1),
    "spectral_norm_steps": at_least(1),
    "width": optional(at_least(1)),
    "train_examples": optional(at_least(1)),
    "image_size": optional(at_least(1)),
    "epsilon": at_least(0),
    "weight": at_least(0),
    "weight_decay": at_least(0),
    "warmup_epochs": at_least(0),
    "cutout": at_least(0),
    "learning_rate": ranges.POSITIVE,
    "clip_norm": optional(ranges.POSITIVE),
    "decay_factor": ranges.POSITIVE,
    "p": ranges.EXPONENT,
    "q": ranges.EXPONENT,
    "momentum": ranges.UNIT_WITHOUT_1,
    "random_labels": ranges.UNIT,
    "validation_fraction": ranges.UNIT_WITHOUT_1,
    "least_area": ranges.UNIT_WITHOUT_0,
    "seed": Range(
        lambda seed: 0 <= seed <= _LARGEST_SEED,
        f"must be at least 0 and at most {_LARGEST_SEED}",
    ),
}


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
    for name, value in dataclasses.asdict(config).items():
        if isinstance(value, int) and name != "seed" and value > _LARGEST_COUNT:
            raise ValueError(f"{name} is {value}; it must be at most {_LARGEST_COUNT}.")
    for name, allowed in _RANGES.items():
        allowed.check(name, getattr(config, name))
    data.check_name(config.dataset)
    units.check(config)
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
        depth=config.depth,
        scalar_biases=config.scalar_biases,
        scalar_multipliers=config.scalar_multipliers,
        dropout=config.dropout,
    )
    methods.check(config)
    _check_dropout(config)


def _check_spectral_norm(config: Config) -> None:
    """Raises ValueError for a bound that cannot be kept, or options without one."""
    bound, method = config.spectral_norm_bound, config.spectral_norm_method
    for name in ("spectral_norm_method", "spectral_norm_steps"):
        value = getattr(config, name)
        if bound is None and value != getattr(Config(), name):
            raise ValueError(
                f"{name} is {value!r}; without spectral_norm_bound it has no use."
            )
    clips = method in ("clip", "clip_once")
    if clips and config.spectral_norm_steps != 1:
        raise ValueError(
            f"spectral_norm_steps is {config.spectral_norm_steps}, which the "
            f"spectral_norm_method {method!r} does not use."
        )
    if bound is None:
        return
    if not bound > 0 or (math.isinf(bound) and clips):
        allowed = "positive and finite" if clips else "positive"
        raise ValueError(f"spectral_norm_bound is {bound}; it must be {allowed}.")


def _check_dropout(config: Config) -> None:
    """Raises ValueError where dropout would enter the difference of two passes."""
    differs = config.method in methods.methods_with("difference_step") or (
        config.method in methods.methods_with("variant")
        and config.variant == "difference"
    )
    if config.dropout and differs:
        raise ValueError(
            f"dropout is {config.dropout}; the method {config.method!r} compares two "
            "passes of an image, in which other entries would be dropped, so dropout "
            "must be 0."
        )


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
