"""The measurements of one trained network that several binaries report."""

import dataclasses
import functools
import math
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.common import pieces
from opnorm import analysis, attacks, data, models, runs, training
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
) -> dict[str, Any]:
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


def dataset_name(given: str | None, config: Config) -> str:
    """Returns the data set to measure a network on.

    A line on stderr names a folder that only the run names, which may come from
    somebody else.

    Args:
      given: by the user, or None.
      config: of the run.
    """
    if given is not None:
        return given
    _, colon, folder = config.dataset.partition(":")
    if colon:
        print(f"images are read from {folder}, which the run names", file=sys.stderr)
    return config.dataset


def load_splits(
    config: Config, test_examples: int, *, download: bool
) -> tuple[data.Dataset | data.Stream, data.Dataset]:
    """Loads what a configuration trains on, and test examples of the same data.

    Raises:
      ValueError or FileNotFoundError: as :func:`opnorm.data.load`, or if the splits
        have other classes or shapes of images.
    """
    train_set = training.load_train_set(config, download=download)
    test_set = data.load(
        config.dataset,
        split="test",
        data_dir=config.data_dir,
        download=download,
        limit=test_examples,
        image_size=training.image_size(config),
    )
    data.check_splits(train_set, test_set)
    return train_set, test_set


def check_alike(configs: Mapping[str, Config], fields: Sequence[str]) -> None:
    """Raises a ValueError unless the configurations of presets agree in some fields.

    Args:
      configs: by the name of their preset.
      fields: of a configuration.
    """
    names = list(configs)
    for name in names:
        for field in fields:
            one, other = (getattr(configs[each], field) for each in (names[0], name))
            if one != other:
                raise ValueError(
                    f"presets is {names}; {field} is {one} in the first and {other} in "
                    f"{name}, and they must be alike in it."
                )


def check_fit(
    run: str, config: Config, network: models.Network, examples: data.Dataset
) -> None:
    """Raises a ValueError unless a network takes the examples; nothing is computed.

    Args:
      run: what an error calls the network.
      config: of its training.
      network: to be measured.
      examples: images and classes that it is to be measured on.
    """
    objective = training.make_objective(
        config, examples.num_classes, examples.image_shape
    )
    needed = jax.eval_shape(objective.init, jax.random.key(0))
    there, here = (
        {
            jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape
            for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
        }
        for tree in ((network.params, network.batch_stats), needed)
    )
    differing = sorted(n for n in there | here if there.get(n) != here.get(n))
    if differing:
        # The first part says which of the two trees it is in.
        shapes = "; ".join(
            f"{name.split('/', 1)[1]} is {there.get(name)} there and would be "
            f"{here.get(name)}"
            for name in differing
        )
        raise ValueError(
            f"run {run}, trained on {config.dataset}, does not take {examples.name}: "
            f"images of {examples.image_shape} and {examples.num_classes} classes; "
            f"{shapes}."
        )


def create_run_directory(
    path: str | Path, settings: Mapping[str, Any], configs: Sequence[Config]
) -> runs.RunDirectory:
    """Makes the directory of a job of several networks, or opens the same job's.

    Args:
      path: where.
      settings: what decides the result besides the networks.
      configs: of the networks.

    Raises:
      ValueError: if the directory holds another job, naming what differs; or as
        ``RunDirectory.create``.
    """
    given = [dataclasses.asdict(config) for config in configs]
    run = runs.RunDirectory.create(
        path, {**settings, "configs": given}, may_differ=("configs",)
    )
    held = run.flags().get("configs")
    if not isinstance(held, list) or not all(isinstance(each, dict) for each in held):
        raise ValueError(f"{path} has a flags.json without configurations of networks.")
    if len(held) != len(given):
        raise ValueError(
            f"{path} holds another run: of {len(held)} networks there and "
            f"{len(given)} here."
        )
    default = dataclasses.asdict(Config())
    changes: dict[str, str] = {}
    for stored, config in zip(held, given, strict=True):
        # Fields that did not exist yet when the directory was made.
        for name, there in (default | stored).items():
            # Where the data are decides no result.
            if name == "data_dir":
                continue
            here = config.get(name)
            # JSON holds no infinity; it is kept as text.
            if isinstance(here, float) and math.isinf(here):
                here = str(here)
            if there != here:
                changes.setdefault(name, f"{name} is {there} there and {here} here")
    if changes:
        raise ValueError(f"{path} holds another run: {'; '.join(changes.values())}.")
    return run


def train_and_measure(
    config: Config,
    directory: Path,
    train_set: data.Dataset | data.Stream,
    test_set: data.Dataset,
    *,
    epsilons: Sequence[float],
    num_steps: int,
    fresh: bool = False,
) -> dict[str, Any]:
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
    identity = pieces.fingerprint(config, result.network, test_set)

    def compute() -> dict[str, Any]:
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
    settings |= pieces.network_settings(config, identity)
    return pieces.cached(directory / "measured.json", settings, compute, fresh=fresh)


def spectrum(
    network: models.Network,
    test_set: data.Dataset,
    *,
    p: float,
    epsilon: float,
    num_steps: int,
    batch_size: int,
    seed: int,
) -> dict[str, Any]:
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
        "sigma": averaged(found.values[:, 0]),
        "singular_values": averaged(found.values),
        "alignment": averaged(aligned),
        "random_alignment": float(analysis.expected_random_alignment(delta[0].size)),
    }


def average(measurements: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Averages measurements of networks that differ only in seed.

    Standard errors stay those over the test examples, averaged over seeds; "seeds"
    holds the value of each seed where one number sums it up.
    """
    first = measurements[0]
    averaged: dict[str, Any] = {
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


def averaged(values: Any, where: Any = True) -> dict[str, Any]:
    """Returns the mean over the first axis and its standard error, as plain numbers.

    Args:
      values: ``(N, ...)``, one row per example.
      where: which of them count; broadcasts to ``values``.

    Returns:
      "mean" and "standard_error". The standard error of fewer than two examples is not
      known: NaN, which files of results hold as null.
    """
    average = analysis.average(values, where)
    return {
        "mean": average.mean.tolist(),
        "standard_error": average.standard_error.tolist(),
    }


def norm_name(p: float) -> str:
    """What figures and tables call the norm: "L2", "Linf"."""
    return f"L{p:g}"
