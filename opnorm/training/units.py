"""The unit of the lengths in a configuration, and their conversion to pixels."""

import dataclasses
import math

from opnorm import models
from opnorm.training.config import Config


def in_pixels(config: Config) -> Config:
    """Returns a configuration with the same lengths in [0, 1] pixel units.

    A network computes ``(x - mean) / std`` of the pixels x. A length of such
    standardised images is multiplied by the root mean square of ``std`` over the
    channels, one number for all of them: with one number for each channel, norms would
    be weighted, and lengths could not be compared with others. The channels of
    "cifar10" and "imagenet" differ from that number by at most 5 %.

    Args:
      config: the configuration of a run, such as ``run.config``.

    Returns:
      The configuration with ``epsilon`` and ``step_size`` in pixels, whose
      ``epsilon_unit`` is "pixels".

    Raises:
      ValueError: for lengths of standardised images with a normalisation that divides
        by nothing, or each image by a number of its own.

    Example:
      >>> from opnorm import training
      >>> config = training.Config(normalization="cifar10", epsilon=8 / 255,
      ...                          epsilon_unit="standardized")
      >>> round(training.in_pixels(config).epsilon * 255, 2)
      2.01
    """
    if config.epsilon_unit == "pixels":
        return config
    check(config)
    _, std = models.STATISTICS[config.normalization]
    # The check refuses "whitened", whose std is not a number.
    assert not isinstance(std, str)
    channels = (std,) if isinstance(std, float) else std
    pixels = math.sqrt(math.fsum(s * s for s in channels) / len(channels))
    size = config.step_size
    return dataclasses.replace(
        config,
        epsilon=pixels * config.epsilon,
        step_size=None if size is None else pixels * size,
        epsilon_unit="pixels",
    )


def check(config: Config) -> None:
    """Raises ValueError if the unit needs one divisor and the network has none."""
    lacking = {
        "none": "has no standard deviation",
        "whitened": "has another standard deviation for each image",
    }
    if config.epsilon_unit != "pixels" and config.normalization in lacking:
        raise ValueError(
            f"epsilon_unit is {config.epsilon_unit!r}, but the normalization "
            f"{config.normalization!r} {lacking[config.normalization]}; epsilon_unit "
            "must be 'pixels', or normalization another one."
        )
