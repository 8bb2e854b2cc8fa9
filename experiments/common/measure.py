"""The measurements of one trained network that several binaries report."""

import dataclasses
import functools
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.common import cache, records
from experiments.common.records import Record
from opnorm import analysis, attacks, data, linalg, models, operators, training
from opnorm.training import Config

_array_shape: Callable[..., jax.ShapeDtypeStruct] = jax.ShapeDtypeStruct


class Pga(NamedTuple):
    """PGA on the cross-entropy of the true labels, from a random start.

    It is the published attack: its step size is 2 epsilon / num_steps, and gradients
    keep the entries that the box of pixels blocks.

    Attributes:
      p: exponent of the norm.
      num_steps: number of steps.
      seed: seed of the random starts.
      batch_size: examples per compiled call.
    """

    p: float
    num_steps: int
    seed: int
    batch_size: int = 100

    @property
    def attack(self) -> analysis.AttackFactory:
        """The attack as a function of epsilon; equal settings give one object."""
        return _factory(self.p, self.num_steps)

    def perturbations(
        self, network: linalg.Network, examples: data.Dataset, epsilon: float
    ) -> np.ndarray:
        """Returns the perturbations of one length, ``(N, ...)``."""
        return analysis.perturbations(
            network,
            examples.images,
            examples.labels,
            attack=self.attack,
            epsilon=epsilon,
            batch_size=self.batch_size,
            key=jax.random.key(self.seed),
        )


@functools.cache
def _factory(p: float, num_steps: int) -> analysis.AttackFactory:
    return functools.partial(_pga, p, num_steps)


def _pga(p: float, num_steps: int, epsilon: Any) -> attacks.Attack:
    return attacks.pga(p=p, epsilon=epsilon, num_steps=num_steps, skip_blocked=False)


def measure(
    network: linalg.Network,
    test_set: data.Dataset,
    pga: Pga,
    *,
    epsilons: Sequence[float],
    alignment_epsilon: float,
) -> Record:
    """Measures accuracy, robustness, Jacobian spectrum and alignment of a network.

    Args:
      network: the network, in inference mode.
      test_set: the examples.
      pga: the attack.
      epsilons: lengths of the attack, in [0, 1] pixel units; clean accuracy, as length
        0, comes before them in any case.
      alignment_epsilon: length of the perturbations compared with singular vectors.

    Returns:
      "accuracy", see :func:`accuracy_curve`, "clean_accuracy", "examples", and those of
      :func:`spectrum`.
    """
    curve = accuracy_curve(network, test_set, pga, epsilons)
    return {
        "clean_accuracy": float(curve["mean"][0]),
        "accuracy": curve,
        "examples": len(test_set),
        **spectrum(network, test_set, pga, alignment_epsilon),
    }


def accuracy_curve(
    network: linalg.Network,
    test_set: data.Dataset,
    pga: Pga,
    epsilons: Sequence[float],
) -> dict[str, list[float]]:
    """Measures accuracy on clean images, then under PGA of each length.

    Returns:
      "epsilon", from 0 on, "mean" and "standard_error", of equal lengths.
    """
    examples = (network, test_set.images, test_set.labels)
    lengths = [float(epsilon) for epsilon in epsilons if epsilon > 0]
    clean = analysis.evaluate_accuracy(*examples, batch_size=pga.batch_size)
    attacked = analysis.robust_accuracy(
        *examples,
        attack=pga.attack,
        epsilons=lengths,
        batch_size=pga.batch_size,
        key=jax.random.key(pga.seed),
    )
    points = [clean, *attacked]
    return {
        "epsilon": [0.0, *lengths],
        "mean": [point.mean for point in points],
        "standard_error": [point.standard_error for point in points],
    }


def spectrum(
    network: linalg.Network, test_set: data.Dataset, pga: Pga, epsilon: float
) -> Record:
    """Measures the Jacobian of the logits, and how perturbations align with it.

    Returns:
      "sigma" and "alignment", each with "mean" and "standard_error" over the examples;
      "singular_values", the same by rank; "random_alignment", the expected alignment
      of a random direction.
    """
    images = test_set.images
    found = analysis.jacobian_spectrum(network, images, batch_size=pga.batch_size)
    delta = pga.perturbations(network, test_set, epsilon)
    aligned = analysis.alignment(jnp.asarray(delta), jnp.asarray(found.right))
    return {
        "sigma": records.mean_and_error(found.values[:, 0]),
        "singular_values": records.mean_and_error(found.values),
        "alignment": records.mean_and_error(aligned),
        "random_alignment": float(analysis.expected_random_alignment(delta[0].size)),
    }


def train_and_measure(
    config: Config,
    directory: Path,
    train_set: data.Dataset | data.Stream,
    test_set: data.Dataset,
    *,
    epsilons: Sequence[float],
    num_steps: int,
    fresh: bool = False,
) -> Record:
    """Trains a network and measures it; both go on after an interruption.

    Args:
      config: configuration of the network; its seed is that of the attack too.
      directory: run directory, with measured.json, which is read if it holds the
        measurements of the same network, on the same examples, in the same way.
      train_set: examples to train on.
      test_set: examples to measure on.
      epsilons: lengths of the measuring attack, in [0, 1] pixel units.
      num_steps: number of steps of the measuring attack.
      fresh: whether to measure again in any case.

    Returns:
      As :func:`measure`, and "training_seconds" and "measuring_seconds".
    """
    start = time.monotonic()
    # A complete run is only read: its network says which measurements are its own.
    result = training.train(config, directory=directory, train_set=train_set)
    trained = time.monotonic()
    identity = cache.fingerprint(config, result.network, test_set)

    def compute() -> Record:
        found = measure(
            result.network,
            test_set,
            Pga(config.p, num_steps, config.seed),
            epsilons=epsilons,
            alignment_epsilon=training.in_pixels(config).epsilon,
        )
        found["training_seconds"] = trained - start
        found["measuring_seconds"] = time.monotonic() - trained
        return found

    settings = {"epsilons": list(epsilons), "num_steps": num_steps}
    settings |= cache.network_settings(config, identity)
    return cache.cached(directory / "measured.json", settings, compute, fresh=fresh)


def average(measurements: Sequence[Record]) -> Record:
    """Averages measurements of networks that differ only in seed.

    Standard errors are those over the test examples, averaged over seeds; "seeds"
    holds the value of each seed for the quantities of one number, and "over_networks"
    their means with standard errors over the networks, NaN for a single one.
    """
    first = measurements[0]
    averaged: Record = {
        name: {
            part: _mean([m[name][part] for m in measurements]) for part in first[name]
        }
        for name in ("accuracy", "sigma", "singular_values", "alignment")
    }
    scalars = ("clean_accuracy", "random_alignment", "examples")
    averaged |= {n: float(np.mean([m[n] for m in measurements])) for n in scalars}
    averaged["seeds"] = {
        "clean_accuracy": [m["clean_accuracy"] for m in measurements],
        "sigma": [m["sigma"]["mean"] for m in measurements],
        "alignment": [m["alignment"]["mean"] for m in measurements],
        "accuracy": [m["accuracy"]["mean"] for m in measurements],
    }
    averaged["over_networks"] = {
        name: records.mean_and_error(values)
        for name, values in averaged["seeds"].items()
    }
    return averaged


def _mean(values: Sequence[Any]) -> Any:
    """Returns the mean over the first axis; NaN where a file has null."""
    return np.mean(np.array(values, np.float64), axis=0).tolist()


def norm_name(p: float) -> str:
    """Returns the name of the norm in figures and tables: "L2", "Linf"."""
    return f"L{p:g}"


def find_layers(
    config: Config, network: models.Network, test_set: data.Dataset
) -> tuple[operators.Layer, ...]:
    """Finds the layers of a trained network; BatchNorm does not count.

    Args:
      config: of its training.
      network: in inference mode.
      test_set: gives the shape of the images and the number of classes.
    """
    # Rematerialised kernels are computed inside the network.
    plain = dataclasses.replace(config, rematerialize=False)
    return operators.layers(
        training.build_model(plain, test_set.num_classes),
        network.variables,
        _array_shape((1, *test_set.image_shape), jnp.float32),
        batch_norm="ignore",
        train=False,
    )
