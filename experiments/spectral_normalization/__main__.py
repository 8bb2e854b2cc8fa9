r"""Tests the claim of Farnia, Zhang & Tse 2019: networks whose layers have a bounded
spectral norm generalise better to adversarial examples.

  python -m experiments.spectral_normalization
  python -m experiments.spectral_normalization --dataset=cifar10_mini --width=24 \
    --epochs=20                                            # reduced, on a CPU

Trains the network of each of --presets, the schemes of the paper's Table 1 for one
architecture, with each of --bounds on the spectral norms of its layers (inf is no
bound), and measures it under the attack that it was trained with, or on clean images
after ERM. Flags of the training replace the values of all presets. The first
--validation_examples test images choose the bound of each scheme, and results are
reported on others. --methods adds other ways to bound; the norm of the kernel matrix is
the paper's Fig. 10. --random_labels_too trains the first scheme on random labels too,
for Figs. 3 and 4.

Networks are in PRESET/ of --run, one run each, in the form that experiments.spectrum
reads; results are in results.json, table.md and figures: accuracies by bound, training
curves, ||f(x)|| / ||x||, gradient norms, margins in units of the capacity norm,
accuracy by length of the attack. The capacity norm takes no account of biases, branches
and overlapping pooling; kappa is the smallest gradient norm among the measured images.
After an interruption it goes on where it ended.
"""

import dataclasses
import hashlib
import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from absl import flags

from experiments.common import cache, cli, jobs, options, records
from experiments.common.records import Record
from experiments.spectral_normalization import figures, measure, networks, tables
from experiments.spectral_normalization.measure import Examples
from experiments.spectral_normalization.networks import WITHOUT, Planned
from opnorm import data, models, runs, training
from opnorm.training import SPECTRAL_NORM_METHODS, Config

# Fields that presets and the flags below decide.
_NO_FLAGS = ("method", "spectral_norm_bound", "spectral_norm_method", "random_labels")
_FIELDS = tuple(
    field.name for field in dataclasses.fields(Config) if field.name not in _NO_FLAGS
)
_SCHEMES = ("erm", "fgm_l2", "pgm_l2", "wrm")

options.define_config_flags(Config, only=_FIELDS)
_PRESETS = flags.DEFINE_list(
    "presets",
    [f"farnia_cifar10_alexnet_{scheme}" for scheme in _SCHEMES],
    "the schemes, published recipes of one architecture",
)
_BOUNDS = flags.DEFINE_list(
    "bounds",
    ["inf", "1", "1.3", "1.6", "2", "4"],
    "bounds on the layers' spectral norms; inf, no bound, is one of them",
)
_METHODS = flags.DEFINE_list(
    "methods",
    ["normalize"],
    f"how norms are bounded, out of {', '.join(SPECTRAL_NORM_METHODS)}; figures "
    "compare networks of the first",
)
_RANDOM = flags.DEFINE_boolean(
    "random_labels_too",
    False,
    "train the first scheme on random labels too, with its best bound and without",
)
_RUN = flags.DEFINE_string(
    "run", "runs/spectral_normalization", "directory to write to"
)
_VALIDATION = flags.DEFINE_integer(
    "validation_examples", 500, "number of test images that choose the bound"
)
_TEST = flags.DEFINE_integer(
    "test_examples", 1000, "largest number of other test images to report on"
)
_TRAIN = flags.DEFINE_integer(
    "train_measured", 1000, "largest number of training images to measure on"
)
_EPSILONS = flags.DEFINE_list(
    "epsilons",
    ["0.25", "0.5", "1", "1.5", "2"],
    "strengths of the attack to measure with, in multiples of its length in training, "
    "for WRM of 1 / gamma",
)
cache.define_fresh_flag()
_DOWNLOAD = options.define_download_flag()


def main() -> None:
    """Trains and measures every network, writes and prints the results."""
    started = records.start()
    strengths = options.parse_lengths("epsilons", _EPSILONS.value)
    options.check_at_least(2, _VALIDATION, _TEST, _TRAIN)
    schemes = networks.schemes(_PRESETS.value, options.given_fields(Config))
    first, *_ = schemes
    bounds = options.parse_floats("bounds", _BOUNDS.value)
    kinds, folder = _METHODS.value, Path(_RUN.value)
    run = runs.RunDirectory.for_results(folder)
    planned = {
        name: networks.planned(scheme, bounds, kinds, folder / name)
        for name, scheme in schemes.items()
    }
    relabelled: dict[str, Planned] = {}
    if _RANDOM.value:
        # For the figures, which show the first way to bound.
        relabelled = networks.planned(
            schemes[first], bounds, kinds[:1], folder / first, labels="random"
        )
    train_set, examples = _load(schemes)
    run = cli.hold(run, own=list(schemes))
    found = {
        name: {
            "config": dataclasses.asdict(scheme),
            "paper": dict(training.get_preset(name).paper),
            **_measure_scheme(
                name, planned[name], schemes, train_set, examples, strengths
            ),
        }
        for name, scheme in schemes.items()
    }
    random = {}
    if relabelled:
        # The same images with other labels, which their configurations decide.
        others = training.load_train_set(relabelled[WITHOUT].config)
        assert isinstance(others, data.Dataset)
        own = examples._replace(train=others.slice(0, len(examples.train)))
        for name in (WITHOUT, found[first]["best_bounded"][kinds[0]]):
            random[name] = _train_and_measure(relabelled[name], others, own)
    results = {
        "data": examples.test.description,
        "network": _title(schemes[first]),
        "first": first,
        "methods": kinds,
        "train_examples": len(train_set),
        "train_measured": len(examples.train),
        "validation_examples": len(examples.validation),
        "test_examples": len(examples.test),
        **records.origin(started),
        "schemes": found,
        "random_labels": random,
    }
    run.write_json("results.json", results)
    # Tables and figures are made of the file, in which infinity is text.
    results = json.loads((run.path / "results.json").read_text())
    text = tables.text(results)
    run.write_text("table.md", text)
    figures.draw(run, results)
    records.report(run, text, started)


def _load(schemes: Mapping[str, Config]) -> tuple[data.Dataset, Examples]:
    """Returns the training set, and the examples to measure networks on."""
    config = next(iter(schemes.values()))
    train_set, test_set = jobs.load_splits(
        config, _VALIDATION.value + _TEST.value, download=_DOWNLOAD.value
    )
    assert isinstance(train_set, data.Dataset)
    examples = measure.divide(
        train_set, test_set, train=_TRAIN.value, validation=_VALIDATION.value
    )
    for scheme in schemes.values():
        plan = training.make_plan(scheme, len(train_set))
        training.check_devices(plan, jax.device_count(), scheme.accumulation_steps)
    return train_set, examples


def _measure_scheme(
    name: str,
    planned: Mapping[str, Planned],
    schemes: Mapping[str, Config],
    train_set: data.Dataset,
    examples: Examples,
    strengths: Sequence[float],
) -> Record:
    """Trains and measures the networks of a scheme, and compares them."""
    measured = {
        each.name: _train_and_measure(each, train_set, examples)
        for each in planned.values()
    }
    kinds = _METHODS.value
    bounded = {kind: networks.choose(measured, kind, finite=True) for kind in kinds}
    attacks = {
        other: attack
        for other, scheme in schemes.items()
        if (attack := measure.own_attack(scheme)) is not None
    }
    # A scheme without an attack is measured under those of the others.
    attacks = {name: attacks[name]} if name in attacks else attacks
    return {
        "networks": measured,
        "chosen": {kind: networks.choose(measured, kind) for kind in kinds},
        "best_bounded": bounded,
        "seconds_per_step": _time(planned, list(bounded.values()), train_set),
        "strengths": {
            each: {
                other: _strengths(planned[each], attack, examples, strengths)
                for other, attack in attacks.items()
            }
            for each in (WITHOUT, bounded[kinds[0]])
        },
    }


def _train_and_measure(
    each: Planned, train_set: data.Dataset, examples: Examples
) -> Record:
    config = each.config
    print(each.directory, file=sys.stderr)
    steps = training.make_plan(config, len(train_set)).phases[0].steps_per_epoch
    try:
        # A complete run is only read; its network identifies its measurements.
        result = training.train(
            config,
            directory=each.directory,
            train_set=train_set,
            log_every=max(1, steps // 10),
            # Lines at other steps would move the means of the training curves.
            robust_check_every=0,
        )
    except FloatingPointError as error:
        raise FloatingPointError(f"{each.directory}: {error}") from error
    found = cache.cached(
        each.directory / "measured.json",
        _settings(config, result.network, examples),
        lambda: measure.measure(config, result.network, examples),
        fresh=flags.FLAGS.fresh,
    )
    bound = config.spectral_norm_bound
    return {
        "run": str(each.directory.relative_to(_RUN.value)),
        "bound": math.inf if bound is None else bound,
        "method": None if bound is None else config.spectral_norm_method,
        **_without_settings(found),
        "training": networks.training_curve(each.directory),
    }


def _strengths(
    each: Planned,
    attack: Config,
    examples: Examples,
    strengths: Sequence[float],
) -> Record:
    description = measure.describe(attack)
    # Presets with the same attack share the file.
    digest = hashlib.sha256(description.encode()).hexdigest()[:8]
    network = training.load_run(each.directory).network
    found = cache.cached(
        each.directory / f"strengths-{digest}.json",
        _settings(each.config, network, examples)
        | {"attack": description, "strengths": list(strengths)},
        lambda: measure.accuracy_by_strength(network, examples, attack, strengths),
        fresh=flags.FLAGS.fresh,
    )
    return _without_settings(found)


def _time(
    planned: Mapping[str, Planned], bounded: Sequence[str], train_set: data.Dataset
) -> Record:
    configs = {name: planned[name].config for name in (WITHOUT, *bounded)}
    found = cache.cached(
        planned[WITHOUT].directory / "seconds_per_step.json",
        {"networks": list(configs)},
        lambda: networks.time_steps(configs, train_set),
        fresh=flags.FLAGS.fresh,
    )
    return _without_settings(found)


def _settings(config: Config, network: models.Network, examples: Examples) -> Record:
    """Returns the settings that decide the measurements of a trained network."""
    identity = cache.fingerprint(config, network, *examples)
    return cache.network_settings(config, identity)


def _without_settings(found: Mapping[str, Any]) -> Record:
    return {part: value for part, value in found.items() if part != "settings"}


def _title(config: Config) -> str:
    width = "" if config.width is None else f", width {config.width}"
    return f"{config.model}{width}, {config.epochs} epochs"


if __name__ == "__main__":
    cli.run(main)
