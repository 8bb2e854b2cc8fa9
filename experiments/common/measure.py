"""The measurements of one trained network that several binaries report."""

import functools
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.common import cache, records
from experiments.common.records import Record
from opnorm import analysis, attacks, data, models, training
from opnorm.training import Config


def measure(
    network: models.Network,
    test_set: data.Dataset,
    *,
    p: float,
    epsilons: Sequence[float],
    alignment_epsilon: float,
    num_steps: int,
    batch_size: int,
    seed: int,
) -> Record:
    """Measures accuracy, robustness, Jacobian spectrum and alignment of a network.

    Attacks are PGA on the cross-entropy of the true labels, from a random start, with
    step size 2 epsilon / num_steps; all passes run in inference mode.

    Args:
      network: as ``training.train`` or ``training.load_run`` returns it.
      test_set: the examples.
      p: exponent of the attack's norm.
      epsilons: lengths to attack with, in [0, 1] pixel units; clean accuracy, as
        length 0, comes before them in any case.
      alignment_epsilon: length of the perturbations compared with singular vectors.
      num_steps: steps of the attack.
      batch_size: examples per compiled call.
      seed: of the attack's random starts.

    Returns:
      A dict of plain numbers and lists: "accuracy" (a dict of "epsilon", "mean" and
      "standard_error" lists), "clean_accuracy", "sigma" and "alignment" (dicts of
      "mean" and "standard_error" over the examples), "singular_values" (dict of lists
      by rank), "random_alignment" (expected of a random direction).
    """
    curve = accuracy_curve(
        network,
        test_set,
        p=p,
        epsilons=epsilons,
        num_steps=num_steps,
        batch_size=batch_size,
        seed=seed,
    )
    return {
        "clean_accuracy": float(curve["mean"][0]),
        "accuracy": curve,
        "examples": len(test_set),
        **spectrum(
            network,
            test_set,
            p=p,
            epsilon=alignment_epsilon,
            num_steps=num_steps,
            batch_size=batch_size,
            seed=seed,
        ),
    }


def accuracy_curve(
    network: models.Network,
    test_set: data.Dataset,
    *,
    p: float,
    epsilons: Sequence[float],
    num_steps: int,
    batch_size: int,
    seed: int,
) -> dict[str, list[float]]:
    """Measures accuracy on clean images, then under PGA of each length.

    Returns:
      "epsilon", from 0 on, "mean" and "standard_error", of equal lengths.
    """
    examples = (network, test_set.images, test_set.labels)
    lengths = [float(epsilon) for epsilon in epsilons if epsilon > 0]
    clean = analysis.evaluate_accuracy(*examples, batch_size=batch_size)
    attacked = analysis.robust_accuracy(
        *examples,
        attack=usual_attack(p, num_steps),
        epsilons=lengths,
        batch_size=batch_size,
        key=jax.random.key(seed),
    )
    points = [clean, *attacked]
    return {
        "epsilon": [0.0, *lengths],
        "mean": [point.mean for point in points],
        "standard_error": [point.standard_error for point in points],
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
      config: of the network; its seed is that of the measuring attack too.
      directory: run directory; gets measured.json, which is read if it is there and
        was measured of the same network, on the same examples, in the same way.
      train_set: what to train on.
      test_set: what to measure on.
      epsilons: lengths of the measuring attack, in [0, 1] pixel units.
      num_steps: its steps.
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
            p=config.p,
            epsilons=epsilons,
            alignment_epsilon=config.epsilon,
            num_steps=num_steps,
            batch_size=100,
            seed=config.seed,
        )
        found["training_seconds"] = trained - start
        found["measuring_seconds"] = time.monotonic() - trained
        return found

    settings = {"epsilons": list(epsilons), "num_steps": num_steps}
    settings |= cache.network_settings(config, identity)
    return cache.cached(directory / "measured.json", settings, compute, fresh=fresh)


def spectrum(
    network: models.Network,
    test_set: data.Dataset,
    *,
    p: float,
    epsilon: float,
    num_steps: int,
    batch_size: int,
    seed: int,
) -> Record:
    """Measures the logits' Jacobian and how PGA perturbations align with it.

    Returns:
      "sigma", "alignment", "singular_values" and "random_alignment" of :func:`measure`.
    """
    found = analysis.jacobian_spectrum(network, test_set.images, batch_size=batch_size)
    delta = analysis.perturbations(
        network,
        test_set.images,
        test_set.labels,
        attack=usual_attack(p, num_steps),
        epsilon=epsilon,
        batch_size=batch_size,
        key=jax.random.key(seed),
    )
    aligned = analysis.alignment(jnp.asarray(delta), jnp.asarray(found.right))
    return {
        "sigma": records.mean_and_error(found.values[:, 0]),
        "singular_values": records.mean_and_error(found.values),
        "alignment": records.mean_and_error(aligned),
        "random_alignment": float(analysis.expected_random_alignment(delta[0].size)),
    }


def average(measurements: Sequence[Record]) -> Record:
    """Averages measurements of networks that differ only in seed.

    Standard errors stay those over the test examples, averaged over seeds; "seeds"
    holds the value of each seed where one number sums it up.
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
    return averaged


def _mean(values: Sequence[Any]) -> Any:
    """The mean over the first axis; NaN where a file has null."""
    return np.mean(np.array(values, np.float64), axis=0).tolist()


@functools.cache
def usual_attack(p: float, num_steps: int) -> Any:
    """Returns epsilon -> PGA with step size 2 epsilon / num_steps, one object each.

    It is the published attack, whose gradients keep the entries that the box blocks.
    """
    return functools.partial(_pga, p, num_steps)


def _pga(p: float, num_steps: int, epsilon: Any) -> attacks.Attack:
    return attacks.pga(p=p, epsilon=epsilon, num_steps=num_steps, skip_blocked=False)


def norm_name(p: float) -> str:
    """Returns the name of the norm in figures and tables: "L2", "Linf"."""
    return f"L{p:g}"
