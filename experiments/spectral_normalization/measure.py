"""Measures one network under the attack that it was trained with.

:func:`opnorm.training.training_attack` describes the attack.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.common import measure as measuring
from experiments.common import records
from experiments.common.records import Record
from opnorm import analysis, attacks, data, models, operators, training
from opnorm.training import Config

_ATTACKED = training.methods_with("attack_labels")
_ATTACK_FIELDS = (
    "method",
    "p",
    "epsilon",
    "num_steps",
    "step_size",
    "random_start",
    "gamma",
    "attack_labels",
)
_BATCH_SIZE = 100
_PERCENTS = np.linspace(0, 100, 101)


class Examples(NamedTuple):
    """The examples that networks are measured on.

    Attributes:
      train: the first training examples, with the labels that are trained on.
      validation: examples that choose the bound.
      test: test examples, on which results are reported; none of the validation.
    """

    train: data.Dataset
    validation: data.Dataset
    test: data.Dataset


def divide(
    train_set: data.Dataset, test_set: data.Dataset, *, train: int, validation: int
) -> Examples:
    """Takes the first training examples, the first test examples, and the others.

    Args:
      train_set: the training set.
      test_set: the test examples to divide.
      train: largest number of training examples.
      validation: number of test examples that choose the bound.

    Raises:
      ValueError: if fewer than two others are left.
    """
    if len(test_set) < validation + 2:
        raise ValueError(
            f"validation_examples is {validation}; of the {len(test_set)} test "
            "images at least 2 must be left."
        )
    return Examples(
        train_set.slice(0, train),
        test_set.slice(0, validation),
        test_set.slice(validation, None),
    )


def own_attack(config: Config) -> Config | None:
    """Returns the fields that decide the attack of a method, the rest as by default.

    Methods without an attack have None; their networks are measured on clean images.
    """
    if config.method not in _ATTACKED:
        return None
    config = training.in_pixels(config)
    return Config(**{name: getattr(config, name) for name in _ATTACK_FIELDS})


def describe(attack: Config | None) -> str:
    """Returns an attack as text, the same for equal attacks."""
    if attack is None:
        return "none"
    return ", ".join(f"{name}={getattr(attack, name)}" for name in _ATTACK_FIELDS)


def length(attack: Config, strength: float) -> float:
    """Returns the length of an attack: epsilon, in [0, 1] pixel units; WRM has
    ``1 / (2 gamma)``, in squared pixels per unit of the loss.
    """
    reach = 0.5 / attack.gamma if attack.method == "wrm" else attack.epsilon
    return strength * reach


def measure(config: Config, network: models.Network, examples: Examples) -> Record:
    """Measures a network.

    Args:
      config: configuration of its training.
      network: as ``training.train`` or ``training.load_run`` returns it.
      examples: the examples to measure it on.

    Returns:
      "train", "validation" and "test": accuracies under the attack trained with;
      "clean": accuracy on clean test images; "correct": "1" or "0" for each test image
      under the attack; "margins" of the attacked training images, "gradient_norms" of
      the loss at the clean ones, "gains" ``||f(x)|| / ||normalised x||`` at the test
      images: distributions as percentiles; "kappa": the smallest gradient norm at
      clean and attacked training images; "layers": norms; "capacity": logarithms of
      the scheme's capacity norm in L2, None for attacks in another norm;
      "log_released_unit": see :func:`opnorm.analysis.log_released_unit`, None for WRM.
      Both are None with BatchNorm, which the layers leave out.
    """
    attack = own_attack(config)
    found: Record = {}
    for name in ("train", "validation", "test"):
        x_adv, logits = _attack(network, getattr(examples, name), attack)
        right = logits.argmax(axis=1) == getattr(examples, name).labels
        found[name] = records.mean_and_error(right)
        if name == "test":
            found["correct"] = "".join("1" if hit else "0" for hit in right)
        if name == "train":
            margins = analysis.margin(
                jnp.asarray(logits), jnp.asarray(examples.train.labels)
            )
            slopes = [
                analysis.in_batches(
                    _slopes, network, (x, examples.train.labels), _BATCH_SIZE
                )
                for x in (examples.train.images, x_adv)
            ]
    clean = analysis.evaluate_accuracy(
        network, examples.test.images, examples.test.labels
    )
    gains = analysis.in_batches(
        functools.partial(_gains, statistics=config.normalization),
        network,
        (examples.test.images, examples.test.labels),
        _BATCH_SIZE,
    )
    kappa = float(min(values.min() for values in slopes))
    layers = measuring.find_layers(config, network, examples.test)
    norms = _layer_norms(layers)
    return found | {
        "clean": {"mean": clean.mean, "standard_error": clean.standard_error},
        "margins": _distribution(margins),
        "gradient_norms": _distribution(slopes[0]),
        "gains": _distribution(gains),
        "kappa": kappa,
        "layers": [
            {
                "name": layer.name,
                "kind": layer.kind,
                "norm": norms.value[place],
                "upper": norms.upper[place],
                "kernel_matrix": norms.kernel_matrix[place],
            }
            for place, layer in enumerate(layers)
        ],
        "capacity": None
        if layers[0].ignored
        else _log_capacity(config, layers, kappa, examples),
        "log_released_unit": None
        if layers[0].ignored or config.method == "wrm"
        else analysis.log_released_unit(
            layers, norms.value, attacked=attack is not None
        ),
    }


def accuracy_by_strength(
    network: models.Network,
    examples: Examples,
    attack: Config,
    strengths: Sequence[float],
) -> Record:
    """Measures the test accuracy under an attack of several strengths.

    Args:
      network: as ``training.train`` or ``training.load_run`` returns it.
      examples: the examples, whose test images are attacked.
      attack: as :func:`own_attack` returns it, also for another network.
      strengths: multiples of the strength in training.

    Returns:
      "strength", "length", "mean" and "standard_error", of equal lengths.
    """
    points = []
    for strength in strengths:
        _, logits = _attack(network, examples.test, attack, strength)
        points.append(
            records.mean_and_error(logits.argmax(axis=1) == examples.test.labels)
        )
    return {
        "strength": list(strengths),
        "length": [length(attack, strength) for strength in strengths],
        "mean": [point["mean"] for point in points],
        "standard_error": [point["standard_error"] for point in points],
    }


def _attack(
    network: models.Network,
    images: data.Dataset,
    attack: Config | None,
    strength: float = 1.0,
) -> tuple[np.ndarray, np.ndarray]:
    """The attacked images and their logits."""
    found: tuple[np.ndarray, np.ndarray] = analysis.in_batches(
        functools.partial(_attacked, attack=attack),
        network,
        (images.images, images.labels, np.arange(len(images))),
        _BATCH_SIZE,
        (jnp.float32(strength), jax.random.key(0)),
    )
    return found


@functools.partial(jax.jit, static_argnames="attack")
def _attacked(
    f: models.Network,
    x: jax.Array,
    labels: jax.Array,
    number: jax.Array,
    strength: jax.Array,
    key: jax.Array,
    *,
    attack: Config | None,
) -> tuple[jax.Array, jax.Array]:
    x = analysis.to_pixels(x)
    if attack is not None:
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, number)
        x = training.training_attack(attack, strength=strength)(f, x, labels, keys)
    return x, f(x)


@jax.jit
def _slopes(f: models.Network, x: jax.Array, labels: jax.Array) -> jax.Array:
    return analysis.gradient_norms(f, analysis.to_pixels(x), labels)


@functools.partial(jax.jit, static_argnames="statistics")
def _gains(
    f: models.Network, x: jax.Array, labels: jax.Array, *, statistics: str
) -> jax.Array:
    del labels
    mean, std = models.STATISTICS[statistics]
    return analysis.output_gain(
        f,
        analysis.to_pixels(x),
        normalize=lambda z: models.normalize(z, mean, std),
    )


_layer_norms = jax.jit(operators.layer_norms)


def _log_capacity(
    config: Config,
    layers: Sequence[operators.Layer],
    kappa: float,
    examples: Examples,
) -> Record | None:
    """The capacity norm of the scheme; the theorems hold for attacks in L2.

    Networks that whiten images multiply the pixels of each by another factor; it is
    here that of the mean standard deviation of the training images.
    """
    attack = own_attack(config)
    options: dict[str, Any] = {"scheme": "erm"}
    slope = None
    if attack is not None and attack.method == "wrm":
        options = {"scheme": "wrm", "gamma": attack.gamma}
    elif attack is not None:
        if attack.p != 2:
            return None
        slope = kappa
        if attack.num_steps == 1:
            options = {"scheme": "fgm", "epsilon": attack.epsilon}
        else:
            size = attack.step_size
            options = {
                "scheme": "pgm",
                "attack_steps": attack.num_steps,
                "step_size": attacks.default_step_size(attack.epsilon, attack.num_steps)
                if size is None
                else size,
            }
    _, std = models.STATISTICS[config.normalization]
    scale = models.input_scale(std, examples.train.images)
    compute = _capacity(tuple(options.items()), scale)
    return {"scheme": options["scheme"], **compute(layers, slope)._asdict()}


@functools.lru_cache(maxsize=32)
def _capacity(
    options: tuple[tuple[str, Any], ...], scale: tuple[float, ...]
) -> Callable[..., operators.Capacity]:
    @jax.jit
    def capacity(
        layers: Sequence[operators.Layer], kappa: jax.Array | None
    ) -> operators.Capacity:
        return operators.log_capacity(
            layers, kappa=kappa, input_scale=scale, **dict(options)
        )

    return capacity


def _distribution(values: jax.Array | np.ndarray) -> Record:
    values = np.asarray(values, np.float64)
    return {
        "mean": values.mean(),
        "percentiles": [float(f"{v:.6g}") for v in np.percentile(values, _PERCENTS)],
    }
