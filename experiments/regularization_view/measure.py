"""Measures the outcomes, the robustness and the layers of one network."""

import functools
import math
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.common import cache
from experiments.common import measure as measuring
from experiments.common.cache import Arrays, Parts
from opnorm import analysis, attacks, data, models, operators, training
from opnorm.training import Config

_LEVELS = 255
# Step of PGD in the paper, in levels.
_STEP = 2
# Typed: JAX has no types for the constructor.
FORMS = ("operator", "kernel")
# Smallest margin without ramp loss, in logits, and probability that the bound fails.
GAMMA = 1.0
_ETA = 0.05
TERMS = (
    "log_v_min",
    "boundary_found",
    "log_separation",
    "log_sigma_product",
    "log_u_min",
    "log_complexity",
    "log_covering_term",
    "log_bound",
)


class Settings(NamedTuple):
    """How networks are measured. Lengths are in levels of 255 of the unit.

    Attributes:
      unit: "pixels" or "standardized", as ``epsilon_unit`` of the configuration.
      level: length of PGD.
      num_steps: its steps, of length 2.
      variation_levels: lengths of the attacks on the loss.
      boundary_examples: number of training images whose distance to the boundary is
        sought.
      batch_size: examples per compiled call.
      seed: of the random starts.
    """

    unit: str
    level: float
    num_steps: int
    variation_levels: tuple[float, ...]
    boundary_examples: int
    batch_size: int
    seed: int


class Examples(NamedTuple):
    """The examples that networks of one data set are measured on.

    Attributes:
      train: training examples, without augmentation.
      test: test examples.
      trained_on: number of all examples that the networks are trained on.
    """

    train: data.Dataset
    test: data.Dataset
    trained_on: int


def pixels(config: Config, level: float, unit: str) -> float:
    """Returns a length in [0, 1] pixel units.

    Args:
      config: of the network, whose normalisation decides standardised lengths.
      level: the length in levels of 255 of the unit.
      unit: as in :class:`Settings`.
    """
    attacked = Config(
        method="adversarial_only",
        p=math.inf,
        epsilon=level / _LEVELS,
        epsilon_unit=unit,
        normalization=config.normalization,
    )
    return training.in_pixels(attacked).epsilon


def measure(
    config: Config,
    network: models.Network,
    examples: Examples,
    settings: Settings,
    parts: Parts,
) -> Arrays:
    """Measures a network; parts that are there already are read.

    Args:
      config: configuration of its training.
      network: the network, in inference mode.
      examples: the examples to measure it on.
      settings: how.
      parts: where finished parts are kept.

    Returns:
      For the N training and M test examples "train_loss" ``(N,)``, "test_loss"
      ``(M,)`` and likewise "margin", "probability" and "correct"; "robust" ``(M,)``
      bool, correct under PGD as well; "variation" ``(E, M)``, the largest rise of the
      loss; for the L convolutions "layers", their names, "operator" and "kernel", the
      standard deviations of their singular values, both ``(L,)``; the terms of Theorem
      4.1, see :func:`_theorem`.
    """
    identity = cache.fingerprint(config, network, examples.train, examples.test)
    key = {
        **cache.network_settings(config, identity),
        "trained_on": examples.trained_on,
    }
    names = {
        "outcomes": (_outcomes, ()),
        "pgd": (_robust, ("unit", "level", "num_steps", "seed")),
        "variation": (_variation, ("unit", "variation_levels", "num_steps", "seed")),
        "layers": (_layers, ()),
        "theorem": (_theorem, ("boundary_examples", "seed")),
    }
    found: Arrays = {}
    for name, (compute, own) in names.items():
        bound = {option: getattr(settings, option) for option in own}
        call = functools.partial(compute, config, network, examples, settings)
        found |= parts.cached({**key, "part": name, **bound}, call)
    return found


def _outcomes(
    config: Config, network: models.Network, examples: Examples, settings: Settings
) -> Arrays:
    del config
    found: Arrays = {}
    for name, part in (("train", examples.train), ("test", examples.test)):
        outcomes = analysis.evaluate_outcomes(
            network, part.images, part.labels, batch_size=settings.batch_size
        )
        found |= {f"{name}_{k}": v for k, v in outcomes._asdict().items()}
    return found


def _robust(
    config: Config, network: models.Network, examples: Examples, settings: Settings
) -> Arrays:
    step = pixels(config, _STEP, settings.unit)
    (found,) = analysis.robust_accuracy(
        network,
        examples.test.images,
        examples.test.labels,
        attack=_pgd(settings.num_steps, step),
        epsilons=[pixels(config, settings.level, settings.unit)],
        batch_size=settings.batch_size,
        key=jax.random.key(settings.seed),
    )
    return {"robust": found.correct}


@functools.cache
def _pgd(num_steps: int, step_size: float) -> analysis.AttackFactory:
    def attack(epsilon: Any) -> attacks.Attack:
        return attacks.pga(
            p=math.inf, epsilon=epsilon, num_steps=num_steps, step_size=step_size
        )

    return attack


def _variation(
    config: Config, network: models.Network, examples: Examples, settings: Settings
) -> Arrays:
    found = analysis.loss_variation(
        network,
        examples.test.images,
        examples.test.labels,
        epsilons=[
            pixels(config, level, settings.unit) for level in settings.variation_levels
        ],
        num_steps=settings.num_steps,
        batch_size=settings.batch_size,
        key=jax.random.key(settings.seed),
    )
    return {"variation": found}


def _layers(
    config: Config, network: models.Network, examples: Examples, settings: Settings
) -> Arrays:
    del settings
    found = measuring.find_layers(config, network, examples.test)
    # The paper counts 55 layers of ResNet-56, which are its convolutions.
    chosen = [layer for layer in found if layer.kind == "convolution"] or found
    spreads = operators.layer_spreads(chosen)
    stds = {form: getattr(spreads, form) for form in FORMS}
    return {"layers": np.array(spreads.names), **stds}


def _theorem(
    config: Config, network: models.Network, examples: Examples, settings: Settings
) -> Arrays:
    """The terms of Theorem 4.1, as natural logarithms where their names say so.

    The distance to the boundary is that of the images themselves, in L2 and without the
    balls about them. The covering number is that of the box of pixels by Linf balls of
    the radius of the training, which holds for all images; without an attack in
    training there is none. Terms that are not defined are NaN, such as those of the
    weights where the network multiplies by parameters that are in no layer.
    """
    images = examples.train.images[: settings.boundary_examples]
    distance = analysis.boundary_distance(
        network,
        images,
        batch_size=settings.batch_size,
        key=jax.random.key(settings.seed),
    )
    found: dict[str, Any] = dict.fromkeys(TERMS, math.nan) | {
        "boundary_found": distance.num_found,
    }
    layers = measuring.find_layers(config, network, examples.test)
    if layers[0].uncounted or not math.isfinite(distance.v_min):
        return {name: np.asarray(value) for name, value in found.items()}
    _, std = models.STATISTICS[config.normalization]
    scale = models.input_scale(std, examples.test.images)
    terms = operators.log_margin_terms(layers, v_min=distance.v_min, input_scale=scale)
    complexity = operators.log_spectral_complexity(layers)
    found |= {
        "log_v_min": terms.log_v_min,
        "log_separation": terms.log_separation,
        "log_sigma_product": terms.log_sigma_product,
        "log_u_min": terms.log_u_min,
        "log_complexity": complexity.log_product,
    }
    if config.method != "standard":
        covering = operators.log_covering_number(
            constant=1.0,
            dimension=math.prod(examples.train.image_shape),
            epsilon=training.in_pixels(config).epsilon,
        )
        bound = operators.log_generalization_bound(
            terms,
            gamma=GAMMA,
            log_covering_number=covering,
            num_examples=examples.trained_on,
            eta=_ETA,
        )
        found["log_covering_term"] = bound.log_covering_term
        found["log_bound"] = bound.log_bound
    return {name: np.asarray(value) for name, value in found.items()}
