r"""Tests the claim of Farnia, Zhang & Tse 2019: networks whose layers have a bounded
spectral norm generalise better to adversarial examples.

  opnorm spectral_normalization
  opnorm spectral_normalization --dataset=cifar10_mini --width=24 \
    --epochs=20 --validation_fraction=0.1                  # reduced, on a CPU
  opnorm spectral_normalization --dataset=cifar10_mini --width=24 \
    --presets=farnia_cifar10_alexnet_pgm_l2 --methods=normalize,normalize_kernels \
    --controls=batch_norm,dropout,no_lrn,weight_decay --seeds=0,1,2   # Figs. 10, 11

Trains the network of each of --presets, the schemes of the paper's Table 1 for one
architecture, with each of --bounds on the spectral norms of its layers (inf is no
bound) and each of --seeds, and measures it under the attack that it was trained with,
or on clean images after ERM. Flags of the training replace the values of all presets.

The bound of a scheme is the one whose networks have the largest mean accuracy, under
the attack of the training, on validation images; among equal ones the largest. One
bound is chosen for all seeds. With --validation_fraction the validation images are
that part of the training split, held out of the training, and results are reported on
the first test images. Without it they are the first --validation_examples test images,
as in the paper, and results are reported on others. Results decide no choice.

--methods adds other ways to bound; the norm of the kernel matrix is the paper's Fig.
10. --controls adds networks that are regularised in another way (Fig. 11): BatchNorm,
dropout, no LRN, weight decay. --random_label_presets trains those schemes on random
labels too, with the chosen bound and without, for Figs. 3 and 4. --others names
directories of results with other networks, for Fig. 6.

Networks are in PRESET/ of --run, one run each, in the form that experiments.spectrum
reads; results are in results.json, table.md and figures: accuracies by bound, training
curves, ||f(x)|| / ||x||, gradient norms, margins in units of the capacity norm and in
those of the released code, accuracy by length of the attack. The capacity norm takes no
account of biases, branches and overlapping pooling; kappa is the smallest gradient norm
among the measured images. After an interruption it goes on where it ended. Networks
that are missing, because their training failed or with --notrain, are shown as missing.
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

from experiments.common import cache, cli, figures, jobs, options, records
from experiments.common.records import Record
from experiments.spectral_normalization import (
    averages,
    measure,
    networks,
    tables,
)
from experiments.spectral_normalization.figures import draw, read_results
from experiments.spectral_normalization.measure import Examples
from experiments.spectral_normalization.networks import (
    CONTROLS,
    WITHOUT,
    Planned,
    Seeds,
)
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
_SEEDS = flags.DEFINE_list(
    "seeds", [], "seeds, one network of each; none for that of --seed alone"
)
_CONTROLS = flags.DEFINE_list(
    "controls",
    [],
    "networks without a bound that are regularised in another way, out of "
    f"{', '.join(CONTROLS)}",
)
_RANDOM = flags.DEFINE_boolean(
    "random_labels_too",
    False,
    "train the first scheme on random labels too, with its best bound and without",
)
_RANDOM_PRESETS = flags.DEFINE_list(
    "random_label_presets",
    [],
    "those of --presets that are trained on random labels too; all for all of them",
)
_OTHERS = flags.DEFINE_list(
    "others", [], "directories of results of this command, whose gains are drawn too"
)
_TRAIN_MISSING = flags.DEFINE_boolean(
    "train",
    True,
    "train the networks that are not there; --notrain shows them as missing",
)
_RUN = flags.DEFINE_string(
    "run", "runs/spectral_normalization", "directory to write to"
)
_VALIDATION = flags.DEFINE_integer(
    "validation_examples",
    500,
    "number of images that choose the bound: test images, or with "
    "--validation_fraction at most as many of those held out of the training",
)
_TEST = flags.DEFINE_integer(
    "test_examples", 1000, "largest number of test images to report on"
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
    kinds, folder, seeds = _METHODS.value, Path(_RUN.value), _seeds()
    run = runs.RunDirectory.for_results(folder)
    planned = {
        name: networks.planned(
            scheme,
            bounds,
            kinds,
            folder / name,
            seeds=seeds,
            controls=_CONTROLS.value,
        )
        for name, scheme in schemes.items()
    }
    # For the figures, which show the first way to bound.
    relabelled = {
        name: networks.planned(
            schemes[name],
            bounds,
            kinds[:1],
            folder / name,
            seeds=seeds,
            labels="random",
        )
        for name in _with_random_labels(list(schemes))
    }
    others = [read_results(other) for other in _OTHERS.value]
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
    for name, group in relabelled.items():
        bounded = found[name]["best_bounded"][kinds[0]]
        chosen = [WITHOUT] if bounded is None else [WITHOUT, bounded]
        found[name]["random_labels"] = _measure_relabelled(group, chosen, examples)
    results = {
        "data": examples.test.description,
        "network": _title(schemes[first]),
        "first": first,
        "methods": kinds,
        "controls": _CONTROLS.value,
        "seeds": list(seeds or (schemes[first].seed,)),
        "train_examples": len(train_set),
        "train_measured": len(examples.train),
        "validation_fraction": schemes[first].validation_fraction,
        "validation_examples": len(examples.validation),
        "test_examples": len(examples.test),
        **records.origin(started),
        "schemes": found,
    }
    run.write_json("results.json", results)
    # Tables and figures are made of the file, in which infinity is text.
    results = json.loads((run.path / "results.json").read_text())
    text = tables.text(results)
    run.write_text("table.md", text)
    figures.save(run, draw(results, others))
    records.report(run, text, started)


def _seeds() -> tuple[int, ...]:
    """Returns the seeds of --seeds, none if it is not given."""
    seeds = options.parse_integers("seeds", _SEEDS.value)
    if not seeds:
        return ()
    options.check_each_once("seeds", seeds)
    if flags.FLAGS["seed"].present:
        raise ValueError("seed and seeds are both given; give one of them.")
    return seeds


def _with_random_labels(presets: Sequence[str]) -> list[str]:
    """Returns the presets that are trained on random labels too."""
    chosen = _RANDOM_PRESETS.value
    if chosen == ["all"]:
        return list(presets)
    unknown = [name for name in chosen if name not in presets]
    if unknown:
        raise ValueError(
            f"random_label_presets is {chosen}; give some of {', '.join(presets)}, or "
            "all."
        )
    if _RANDOM.value and presets[0] not in chosen:
        chosen = [presets[0], *chosen]
    return [name for name in presets if name in chosen]


def _load(schemes: Mapping[str, Config]) -> tuple[data.Dataset, Examples]:
    """Returns the training set, and the examples to measure networks on."""
    config = next(iter(schemes.values()))
    held_out = config.validation_fraction > 0
    train_set, test_set = jobs.load_splits(
        config,
        _TEST.value if held_out else _VALIDATION.value + _TEST.value,
        download=_DOWNLOAD.value,
    )
    assert isinstance(train_set, data.Dataset)
    if held_out:
        validation_set = training.load_validation_set(
            config, download=_DOWNLOAD.value, limit=_VALIDATION.value
        )
        examples = Examples(train_set.slice(0, _TRAIN.value), validation_set, test_set)
    else:
        examples = measure.divide(
            train_set, test_set, train=_TRAIN.value, validation=_VALIDATION.value
        )
    for scheme in schemes.values():
        plan = training.make_plan(scheme, len(train_set))
        training.check_devices(plan, jax.device_count(), scheme.accumulation_steps)
    return train_set, examples


def _measure_scheme(
    name: str,
    planned: Mapping[str, Seeds],
    schemes: Mapping[str, Config],
    train_set: data.Dataset,
    examples: Examples,
    strengths: Sequence[float],
) -> Record:
    """Trains and measures the networks of a scheme, and compares them."""
    measured = {
        each: _train_and_measure(seeds, train_set, examples)
        for each, seeds in planned.items()
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
                other: _strengths(
                    _there(planned[each], measured[each]), attack, examples, strengths
                )
                for other, attack in attacks.items()
            }
            for each in (WITHOUT, bounded[kinds[0]])
            if each is not None and averages.members(measured[each])
        },
    }


def _there(seeds: Seeds, measured: Record) -> list[Planned]:
    """Returns the networks of a name that are not missing."""
    missing = measured.get("missing", {})
    return [each for seed, each in seeds.items() if str(seed) not in missing]


def _measure_relabelled(
    planned: Mapping[str, Seeds], names: Sequence[str], examples: Examples
) -> Record:
    """Trains and measures networks on random labels."""
    # The same images with other labels, which the configurations decide.
    config = next(iter(planned[WITHOUT].values())).config
    train_set = training.load_train_set(config)
    assert isinstance(train_set, data.Dataset)
    own = examples._replace(train=train_set.slice(0, len(examples.train)))
    return {name: _train_and_measure(planned[name], train_set, own) for name in names}


def _train_and_measure(
    seeds: Seeds, train_set: data.Dataset, examples: Examples
) -> Record:
    """Trains and measures the networks of a name, one for each seed."""
    found: dict[int, Record | None] = {}
    missing: dict[int, str] = {}
    for seed, each in seeds.items():
        try:
            found[seed] = _train_and_measure_one(each, train_set, examples)
        except (FloatingPointError, _NotTrained) as error:
            print(f"{each.directory} is missing: {error}", file=sys.stderr)
            found[seed], missing[seed] = None, str(error)
    each = next(iter(seeds.values()))
    bound = each.config.spectral_norm_bound
    method = each.control if bound is None else each.config.spectral_norm_method
    origin = {"bound": math.inf if bound is None else bound, "method": method}
    return averages.combine(found, missing, origin)


class _NotTrained(Exception):
    """A network is not there and is not to be trained."""


def _train_and_measure_one(
    each: Planned, train_set: data.Dataset, examples: Examples
) -> Record:
    config = each.config
    print(each.directory, file=sys.stderr)
    steps = training.make_plan(config, len(train_set)).phases[0].steps_per_epoch
    if not _TRAIN_MISSING.value and not networks.is_complete(each, len(train_set)):
        raise _NotTrained("it is not trained, or not to its end")
    # A complete run is only read; its network identifies its measurements.
    result = training.train(
        config,
        directory=each.directory,
        train_set=train_set,
        log_every=max(1, steps // 10),
        # Lines at other steps would move the means of the training curves.
        robust_check_every=0,
    )
    found = cache.cached(
        each.directory / "measured.json",
        _settings(config, result.network, examples)
        # Measurements of earlier versions have only the first.
        | {"units_of_margins": ["capacity", "released"]},
        lambda: measure.measure(config, result.network, examples),
        fresh=flags.FLAGS.fresh,
    )
    return {
        "run": str(each.directory.relative_to(_RUN.value)),
        **_without_settings(found),
        "training": networks.training_curve(each.directory),
    }


def _strengths(
    there: Sequence[Planned],
    attack: Config,
    examples: Examples,
    strengths: Sequence[float],
) -> Record:
    """Measures the accuracy by strength of networks that differ in the seed."""
    found = [_strengths_of_one(each, attack, examples, strengths) for each in there]
    measured = {**found[0], **records.over_networks(found)}
    if len(found) == 1 and len(_SEEDS.value) > 1:
        # The others are missing, so the error over networks is not known.
        measured["standard_error"] = [math.nan] * len(strengths)
    return measured


def _strengths_of_one(
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
    planned: Mapping[str, Seeds],
    bounded: Sequence[str | None],
    train_set: data.Dataset,
) -> Record:
    """Times train steps of the first seed; nothing if its network is missing."""
    names = (WITHOUT, *(name for name in bounded if name is not None))
    first = {name: next(iter(planned[name].values())) for name in names}
    directory = first[WITHOUT].directory
    if not directory.exists():
        return {}
    found = cache.cached(
        directory / "seconds_per_step.json",
        {"networks": list(names)},
        lambda: networks.time_steps(
            {name: each.config for name, each in first.items()}, train_set
        ),
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
