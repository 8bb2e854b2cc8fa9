r"""Trains the rows of a paper's table from its presets and prints them beside its own.

  opnorm reproduce --download              # Roth et al., Table 2, CNN7
  opnorm reproduce --dataset=cifar10_mini --width=16 \
    --standard_epochs=20 --epochs=4 --seeds=0,1,2          # reduced, on a CPU
  opnorm reproduce --dataset=cifar10_mini --width=16 \
    --standard_epochs=20 --epochs=4 --seeds=0,1,2 --validation_fraction=0.1 \
    --match=roth_cnn7_snr,roth_cnn7_onr_linf --auto_attack_examples=500
  opnorm reproduce --iterations --seeds=0,1,2   # Figs. 10 and 11

The first preset is trained first; the others that the paper starts from a trained
network start from that one. Flags of the training replace the values of all presets.
Each row has a network for each of --seeds; its run directory is named after the preset,
with -seed0 and so on behind it where --seeds is given.

--match searches, for a row with a penalty, for the lambda at which its clean accuracy
on the validation split is that of adversarial training in the same norm, as the paper
chose lambda (see experiments/reproduce/matching.py), and adds a row with it.

Interrupted, it goes on where it ended. The directory holds a run for each network, as
experiments.spectrum and experiments.linearity take them; results.json and table.md,
which are written after each network and say which are missing; and figures of accuracy
against the length of the perturbations. With --iterations it trains global SNR with 1
and with 10 power iterations only, and writes iterations.json, iterations.md,
figure_10.png and figure_11.png.
"""

import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
from absl import flags

from experiments.common import cache, cli, drawings, jobs, options, records
from experiments.common.measure import norm_name
from experiments.common.records import Record
from experiments.reproduce import (
    claims,
    iterations,
    matching,
    measure,
    networks,
    summary,
    tables,
)
from experiments.reproduce.networks import Network, Plan, Row
from opnorm import data, runs, training

TABLE_2 = (
    "roth_cnn7_standard",
    "roth_cnn7_standard_continued",
    "roth_cnn7_at_l2",
    "roth_cnn7_at_linf",
    "roth_cnn7_snr",
    "roth_cnn7_onr_linf",
    "roth_cnn7_global_snr",
    "roth_cnn7_global_snr_10",
)

options.define_config_flags(training.Config)
_PRESETS = flags.DEFINE_list(
    "presets",
    list(TABLE_2),
    "presets, one for each row; the first is the network that others start from",
)
_RUN = flags.DEFINE_string("run", "runs/table2", "directory to write to")
_SEEDS = flags.DEFINE_list(
    "seeds", None, "seeds; each row has a network for each. By default --seed alone"
)
_STANDARD_EPOCHS = flags.DEFINE_integer(
    "standard_epochs", None, "epochs of the first preset; by default as for the others"
)
_TEST_EXAMPLES = flags.DEFINE_integer("test_examples", 1000, "number of test images")
_TEST_STEPS = flags.DEFINE_integer(
    "test_steps", 10, "number of steps of the measuring attacks"
)
_L2 = flags.DEFINE_list(
    "l2_epsilons",
    ["0.25", "0.5", "0.875", "1.25"],
    "lengths of the L2 attack, in [0, 1] pixel units",
)
_LINF = flags.DEFINE_list(
    "linf_epsilons",
    ["0.00392", "0.00784", "0.01569", "0.03137"],
    "lengths of the Linf attack, in [0, 1] pixel units",
)
_AUTO_ATTACK = flags.DEFINE_integer(
    "auto_attack_examples",
    0,
    "number of test images for AutoAttack in the norm of each row's training, at the "
    "lengths up to that of the training; 0 for none",
)
_MATCH = flags.DEFINE_list(
    "match",
    [],
    "presets with a penalty whose lambda is searched for on the validation split; "
    "needs --validation_fraction",
)
_TOLERANCE = flags.DEFINE_float(
    "match_tolerance",
    0.01,
    "largest difference of the clean validation accuracies, as a fraction",
)
_NETWORKS = flags.DEFINE_integer(
    "match_networks", 8, "largest number of networks of a search for lambda"
)
_ITERATIONS = flags.DEFINE_boolean(
    "iterations",
    False,
    "compare global SNR with 1 and with 10 power iterations, and nothing else",
)
_EXAMPLES = flags.DEFINE_integer(
    "examples", 200, "number of test images for --iterations, at least 2"
)
cache.define_fresh_flag()
_DOWNLOAD = options.define_download_flag()


class _Job(NamedTuple):
    """The rows, the data and the settings of this command.

    Attributes:
      run: the directory, locked.
      rows: the rows of the presets.
      train_set: the images to train on.
      validation_set: the images that are held out of it; None without any.
      test_set: the images to measure on.
      settings: how networks are measured.
    """

    run: runs.RunDirectory
    rows: list[Row]
    train_set: data.Dataset | data.Stream
    validation_set: data.Dataset | None
    test_set: data.Dataset
    settings: measure.Settings


def main() -> None:
    """Trains and measures every network, writes and prints the tables."""
    started = records.start()
    plan = _plan()
    rows = [plan.row(preset) for preset in _presets()]
    networks.check(rows)
    settings = _settings(rows)
    _check_match(rows)
    job = _open(rows, settings)
    if _ITERATIONS.value:
        _compare_iterations(job, started)
        return
    found: dict[str, list[Record]] = {}
    searches: list[Record] = []
    text = ""
    for place in range(len(plan.seeds)):
        for row in list(job.rows):
            found.setdefault(row.name, []).append(_measure(job, row.networks[place]))
            text = _write(job, found, searches, started)
        if place == 0 and _MATCH.value:
            searches = [_search(job, plan, preset) for preset in _MATCH.value]
            job = job._replace(rows=_with_matched(job.rows, plan, searches))
            for row in job.rows:
                if row.name not in found:
                    found[row.name] = [_measure(job, row.networks[0])]
            text = _write(job, found, searches, started)
    results = json.loads((job.run.path / "results.json").read_text())
    drawings.write(job.run, results)
    records.report(job.run, text, started)


def _presets() -> list[str]:
    names = list(_PRESETS.value)
    if _ITERATIONS.value and not flags.FLAGS["presets"].present:
        names = list(iterations.PRESETS)
    options.check_each_once("presets", names)
    if _ITERATIONS.value:
        for needed in iterations.COMPARED:
            if needed not in names:
                raise ValueError(f"presets is {names}; iterations needs {needed}.")
    return names


def _plan() -> Plan:
    changes = options.given_fields(training.Config)
    seeds: tuple[int, ...] = (flags.FLAGS.seed,)
    if _SEEDS.value is not None:
        if "seed" in changes:
            raise ValueError("seed and seeds are both given; give one of them.")
        seeds = options.parse_integers("seeds", _SEEDS.value)
        options.check_each_once("seeds", list(seeds))
    return Plan(
        folder=Path(_RUN.value),
        first=_presets()[0],
        seeds=seeds,
        several=_SEEDS.value is not None,
        changes=changes,
        first_epochs=_STANDARD_EPOCHS.value,
    )


def _settings(rows: Sequence[Row]) -> measure.Settings:
    lengths = {
        2.0: options.parse_floats("l2_epsilons", _L2.value),
        float("inf"): options.parse_floats("linf_epsilons", _LINF.value),
    }
    for p, epsilons in lengths.items():
        if not epsilons or min(epsilons) <= 0:
            name = norm_name(p).lower()
            raise ValueError(f"{name}_epsilons is {epsilons}; each must be positive.")
    options.check_at_least(1, _TEST_EXAMPLES, _TEST_STEPS, _NETWORKS)
    options.check_at_least(0, _AUTO_ATTACK)
    options.check_at_least(2, _EXAMPLES)
    if not 0 <= _TOLERANCE.value < 1:
        raise ValueError(
            f"match_tolerance is {_TOLERANCE.value}; it must be in [0, 1)."
        )
    if _AUTO_ATTACK.value > _TEST_EXAMPLES.value:
        raise ValueError(
            f"auto_attack_examples is {_AUTO_ATTACK.value}; it must be at most "
            f"test_examples, {_TEST_EXAMPLES.value}."
        )
    strong = _auto_attack_lengths(rows, lengths) if _AUTO_ATTACK.value else {}
    return measure.Settings(
        lengths=lengths,
        test_steps=_TEST_STEPS.value,
        auto_attack_examples=_AUTO_ATTACK.value,
        auto_attack_lengths=strong,
        fresh=flags.FLAGS.fresh,
    )


def _auto_attack_lengths(
    rows: Sequence[Row], lengths: Mapping[float, tuple[float, ...]]
) -> dict[float, tuple[float, ...]]:
    """Returns the lengths up to that of the training; all in a norm without one."""
    trained = summary.training_epsilons(rows)
    found = {}
    for p in {row.config.p for row in rows} & set(lengths):
        largest = trained.get(p, math.inf)
        found[p] = tuple(e for e in lengths[p] if claims.is_judged(e, largest))
        if not found[p]:
            name = norm_name(p).lower()
            raise ValueError(
                f"{name}_epsilons is {lengths[p]}; AutoAttack needs a length of at "
                f"most {largest:g}, that of the training."
            )
    return found


def _check_match(rows: Sequence[Row]) -> None:
    """Raises a ValueError for rows that have no lambda to match, or no validation."""
    if not _MATCH.value:
        return
    if _ITERATIONS.value:
        raise ValueError("match and iterations are both given; give one of them.")
    options.check_each_once("match", _MATCH.value)
    known = {row.name: row for row in rows}
    for name in _MATCH.value:
        if name not in known:
            raise ValueError(
                f"match is {_MATCH.value}; {name} must be one of presets, "
                f"{', '.join(known)}."
            )
        if networks.reference(known[name], rows) is None:
            raise ValueError(
                f"match is {_MATCH.value}; {name} must have a penalty, and presets a "
                "row of adversarial training in its norm."
            )
    if rows[0].config.validation_fraction == 0:
        raise ValueError(
            "match is given and validation_fraction is 0; lambda is chosen on images "
            "that are not trained on, so give --validation_fraction=0.1 or the like."
        )


def _open(rows: list[Row], settings: measure.Settings) -> _Job:
    run = runs.RunDirectory.for_results(_RUN.value)
    first = rows[0].config
    train_set, test_set = jobs.load_splits(
        first, _TEST_EXAMPLES.value, download=_DOWNLOAD.value
    )
    validation_set = None
    if first.validation_fraction:
        validation_set = training.load_validation_set(first, download=_DOWNLOAD.value)
    for row in rows:
        config = row.config
        made = training.make_plan(config, len(train_set))
        training.check_devices(made, jax.device_count(), config.accumulation_steps)
    own = [each.directory.name for row in rows for each in row.networks]
    run = cli.hold(runs.RunDirectory(_RUN.value), own=own)
    return _Job(run, rows, train_set, validation_set, test_set, settings)


def _train(job: _Job, each: Network) -> measure.Trained:
    """Trains a network, or reads it if it is there."""
    print(f"network {each.directory}", file=sys.stderr)
    return measure.train(each, job.train_set, job.validation_set)


def _measure(job: _Job, each: Network) -> Record:
    """Trains and measures a network."""
    trained = _train(job, each)
    return measure.measure_network(each, trained, job.test_set, job.settings)


def _search(job: _Job, plan: Plan, preset: str) -> Record:
    """Searches for the lambda of a row, with networks of the first seed."""
    row = next(row for row in job.rows if row.name == preset)
    reference = networks.reference(row, job.rows)
    assert reference is not None, "checked before anything was trained"
    examples, config = job.validation_set, reference.config
    assert examples is not None, "checked before anything was trained"
    epsilon = training.in_pixels(config).epsilon

    def trial(each: Network) -> matching.Trial:
        try:
            trained = _train(job, each)
        except FloatingPointError as error:
            print(f"lambda {each.config.weight:g}: {error}", file=sys.stderr)
            return matching.Trial(each.config.weight, None)
        curve = measure.validate(each, trained, examples, epsilon, job.settings)
        pairs = zip(curve["mean"], curve["standard_error"], strict=True)
        return matching.Trial(each.config.weight, *(n for pair in pairs for n in pair))

    target = trial(reference.networks[0])
    if target.clean is None:
        raise ValueError(f"{reference.name} could not be trained.")
    limits = matching.Limits(_TOLERANCE.value, _NETWORKS.value)
    trials = matching.search(
        lambda weight: trial(plan.row(preset, weight).networks[0]),
        target.clean,
        row.config.weight,
        limits,
    )
    return matching.record(
        trials,
        target._asdict(),
        limits,
        row=preset,
        reference=reference.name,
        seed=plan.seeds[0],
        examples=len(examples),
        attack=f"PGA-{_TEST_STEPS.value}",
        norm=norm_name(config.p),
        epsilon=epsilon,
    )


def _with_matched(
    rows: Sequence[Row], plan: Plan, searches: Sequence[Record]
) -> list[Row]:
    """Returns the rows with a matched one behind each that was searched for."""
    chosen = {s["row"]: s["chosen"] for s in searches if s["chosen"] is not None}
    found = []
    for row in rows:
        found.append(row)
        if row.name in chosen:
            found.append(plan.row(row.preset, chosen[row.name]))
    return found


def _write(
    job: _Job,
    found: Mapping[str, list[Record]],
    searches: Sequence[Record],
    started: records.Start,
) -> str:
    """Writes the results that are there, and returns the tables."""
    results = {
        "data": job.test_set.description,
        "train_examples": len(job.train_set),
        "test_examples": len(job.test_set),
        "test_steps": job.settings.test_steps,
        "auto_attack_examples": job.settings.auto_attack_examples,
        **records.origin(started),
        **summary.summarize(job.rows, found, job.settings.test_steps),
        "matching": list(searches),
    }
    job.run.write_json("results.json", results)
    text = tables.text(json.loads((job.run.path / "results.json").read_text()))
    job.run.write_text("table.md", text)
    return text.rstrip("\n")


def _compare_iterations(job: _Job, started: records.Start) -> None:
    """Draws Figs. 10 and 11."""
    epsilons = job.settings.lengths[2.0]
    settings = iterations.Settings(
        epsilons, job.settings.test_steps, job.settings.fresh
    )
    examples = job.test_set.slice(0, _EXAMPLES.value)
    rows: dict[str, Record] = {}
    for row in job.rows:
        measured = []
        for each in row.networks:
            found = _measure(job, each)
            if row.name not in iterations.COMPARED:
                continue
            trained = _train(job, each)
            around = iterations.measure_network(each, trained, examples, settings)
            measured.append({**around, "accuracy": found["accuracy"]["L2"]})
        if measured:
            runs_of_row = [str(each.directory) for each in row.networks]
            rows[row.name] = {
                "networks": runs_of_row,
                "num_steps": row.config.num_steps,
                **iterations.average(measured),
            }
    results = {
        "data": job.test_set.description,
        "examples": len(examples),
        "test_examples": len(job.test_set),
        "test_steps": job.settings.test_steps,
        "epsilons": list(epsilons),
        "random_alignment": iterations.random_alignment(examples),
        **records.origin(started),
        "rows": rows,
    }
    job.run.write_json("iterations.json", results)
    text = iterations.text(results)
    job.run.write_text("iterations.md", text)
    drawings.write(job.run, results)
    records.report(job.run, text.rstrip("\n"), started)


if __name__ == "__main__":
    cli.run(main)
