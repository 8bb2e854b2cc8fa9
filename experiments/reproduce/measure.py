"""Trains networks, and measures their accuracy under PGA and under AutoAttack."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.common import attack_specs, cache, measure, records
from experiments.common.records import Record
from experiments.reproduce.networks import Network
from opnorm import analysis, data, models, training

# The strong attack, as experiments.evaluate names it.
AUTO_ATTACK = "auto_attack"
# Validation images that are measured after each epoch.
_WATCHED = 1000
_BATCH_SIZE = 100
_PART_SIZE = 100


class Settings(NamedTuple):
    """How networks are measured.

    Attributes:
      lengths: lengths of PGA by the exponent of its norm, in [0, 1] pixel units.
      test_steps: number of steps of PGA.
      auto_attack_examples: number of test images for AutoAttack; 0 for none.
      auto_attack_lengths: its lengths by the exponent of the norm.
      fresh: whether everything is measured again.
    """

    lengths: Mapping[float, tuple[float, ...]]
    test_steps: int
    auto_attack_examples: int
    auto_attack_lengths: Mapping[float, tuple[float, ...]]
    fresh: bool


class Trained(NamedTuple):
    """A trained network.

    Attributes:
      network: in inference mode.
      step: number of updates done.
    """

    network: models.Network
    step: int


def train(
    each: Network,
    train_set: data.Dataset | data.Stream,
    validation_set: data.Dataset | None,
) -> Trained:
    """Trains a network, or reads it if it is there.

    Args:
      each: the network.
      train_set: the examples to train on.
      validation_set: the examples that are held out; the metrics of each epoch are of
        the first of them. None without any.
    """
    watched = validation_set and validation_set.slice(0, _WATCHED)
    result = training.train(
        each.config,
        directory=each.directory,
        train_set=train_set,
        validation_set=watched,
    )
    return Trained(result.network, result.step)


def measure_network(
    each: Network, trained: Trained, test_set: data.Dataset, settings: Settings
) -> Record:
    """Measures a network on the test images.

    Returns:
      "seed", "run", "steps", "accuracy", a curve against the length for each norm, and
      "auto_attack", the same in the norm of the network's training, empty without
      AutoAttack. A curve has "epsilon", from 0 on, "mean" and "standard_error".
    """
    pga = {
        "lengths": {measure.norm_name(p): list(e) for p, e in settings.lengths.items()},
        "test_examples": len(test_set),
        "test_steps": settings.test_steps,
    }
    identity = cache.fingerprint(each.config, trained.network, test_set)
    network = cache.network_settings(each.config, identity)

    def compute() -> Record:
        curves = {
            measure.norm_name(p): measure.accuracy_curve(
                trained.network,
                test_set,
                measure.Pga(p, settings.test_steps, each.config.seed),
                epsilons,
            )
            for p, epsilons in settings.lengths.items()
        }
        return {"steps": trained.step, "accuracy": curves}

    found = cache.cached(
        each.directory / "accuracies.json",
        {**pga, **network},
        compute,
        fresh=settings.fresh,
    )
    return {
        "seed": each.seed,
        "run": str(each.directory),
        "steps": found["steps"],
        "accuracy": found["accuracy"],
        "auto_attack": _auto_attack(each, trained.network, test_set, settings),
    }


def validate(
    each: Network,
    trained: Trained,
    examples: data.Dataset,
    epsilon: float,
    settings: Settings,
) -> Record:
    """Measures a network on validation images: clean, and under PGA of one length.

    Returns:
      "mean" and "standard_error" over the images, of both.
    """
    identity = cache.fingerprint(each.config, trained.network, examples)
    keys = {"epsilon": epsilon, "test_steps": settings.test_steps}
    pga = measure.Pga(each.config.p, settings.test_steps, each.seed)
    return cache.cached(
        each.directory / "validation.json",
        {**keys, **cache.network_settings(each.config, identity)},
        lambda: dict(measure.accuracy_curve(trained.network, examples, pga, [epsilon])),
        fresh=settings.fresh,
    )


def _auto_attack(
    each: Network, network: models.Network, test_set: data.Dataset, settings: Settings
) -> Record:
    """Returns the accuracy under AutoAttack in the norm of the training."""
    p = each.config.p
    epsilons = settings.auto_attack_lengths.get(p, ())
    if not settings.auto_attack_examples or not epsilons:
        return {}
    examples = test_set.slice(0, settings.auto_attack_examples)
    spec = attack_specs.parse_attack(AUTO_ATTACK)
    attack = attack_specs.factory(spec, p)
    key = jax.random.key(each.config.seed)

    def measure_part(
        first: int, last: int, tell: Callable[[float], None]
    ) -> cache.Arrays:
        attacked = analysis.attack_examples(
            network,
            examples.images[first:last],
            examples.labels[first:last],
            attack=attack,
            epsilons=epsilons,
            batch_size=_BATCH_SIZE,
            key=key,
            index=np.arange(first, last),
            on_progress=tell,
        )
        return {"robust": ~analysis.worst_over_budgets(attacked, epsilons)}

    clean = analysis.evaluate_accuracy(
        network, examples.images, examples.labels, batch_size=_BATCH_SIZE
    )
    part_key: dict[str, Any] = {
        "identity": cache.fingerprint(each.config, network, examples),
        "attack": str(spec),
        "p": str(p),
        "epsilons": list(epsilons),
        "seed": each.config.seed,
    }
    parts = cache.in_parts(
        cache.Parts(each.directory / "auto_attack", fresh=settings.fresh),
        part_key,
        measure_part,
        count=len(examples),
        part_size=_PART_SIZE,
        description=f"{each.directory.name}: {AUTO_ATTACK}",
    )
    robust = np.concatenate([part["robust"] for part in parts], axis=1)
    right = np.concatenate([clean.correct[None], robust]).T
    curve = {"epsilon": [0.0, *epsilons], **records.mean_and_error(right)}
    return {measure.norm_name(p): {**curve, "examples": len(examples)}}


def average(networks: list[Record], kind: str) -> Record:
    """Averages the curves of networks that differ in the seed.

    Args:
      networks: as :func:`measure_network` returns them; at least one.
      kind: "accuracy" or "auto_attack".

    Returns:
      For each norm "epsilon" and the entries of :func:`records.over_networks`.
    """
    return {
        norm: {
            "epsilon": curve["epsilon"],
            **records.over_networks([each[kind][norm] for each in networks]),
        }
        for norm, curve in networks[0][kind].items()
    }
