r"""Compares adversarial training with data-dependent SNR along the paths between them.

  python -m experiments.interpolation --sweep=step_size
  python -m experiments.interpolation --sweep=mix

Roth et al. 2020 show that adversarial training with an infinite step is data-dependent
operator-norm regularisation. Two sweeps look at that from both sides, each with one
network for every value and seed, the same for all but the value:

- step_size (their Fig. 6): adversarial training at one epsilon, with the step of the
  training attack in multiples of epsilon / num_steps; the test attack keeps its usual
  step, 2 epsilon / test_steps.
- mix (their Fig. 7): the objective goes from that of adversarial training (0) to that
  of data-dependent SNR (1).

Each network is measured on the test split: clean accuracy, accuracy against L2 PGA of
the training epsilon, and the logits' Jacobian. Writes results.json, table.md and
accuracy.png into --run; interrupted, it goes on where it ended.
"""

import dataclasses
import math
import sys
from collections.abc import Sequence
from pathlib import Path

import jax
from absl import flags

from experiments.common import cache, cli, jobs, measure, options, records, tables
from experiments.common.records import Record
from experiments.common.tables import Column
from experiments.interpolation import figures
from opnorm import data, runs, training

_SWEEPS = {
    "step_size": ("0.5", "1", "2", "5", "10", "inf"),
    "mix": ("0", "0.25", "0.5", "0.75", "1"),
}
# The step of an attack is this times epsilon / its steps unless it is swept.
_USUAL_STEP = 2.0

options.define_config_flags(
    training.Config,
    only=tuple(
        field.name
        for field in dataclasses.fields(training.Config)
        if field.name
        not in ("method", "seed", "p", "q", "mix", "step_size", "variant", "init_from")
    ),
    train_examples=2000,
    epochs=5,
    num_steps=5,
)
_SWEEP = flags.DEFINE_enum(
    "sweep", "mix", list(_SWEEPS), "the difference between the networks"
)
_VALUES = flags.DEFINE_list(
    "values",
    None,
    "values of it: multiples of epsilon / num_steps, inf for the limit, or numbers in "
    "[0, 1]; by default "
    + " or ".join(f"{','.join(values)} ({name})" for name, values in _SWEEPS.items()),
)
_RUN = flags.DEFINE_string(
    "run", None, "directory to write to; by default runs/interpolation-<sweep>"
)
_SEEDS = flags.DEFINE_list("seeds", ["0"], "random seeds, one network per value each")
_TEST_EXAMPLES = flags.DEFINE_integer(
    "test_examples", 400, "number of test images that each network is measured on"
)
_TEST_STEPS = flags.DEFINE_integer(
    "test_steps", 10, "number of steps of the measuring attack"
)
cache.define_fresh_flag()
_DOWNLOAD = options.define_download_flag()


def main() -> None:
    """Trains and measures every value and seed, writes and prints the results."""
    started = records.start()
    values, seeds = _read_lists()
    configs = {(v, seed): _config(v, seed) for v in values for seed in seeds}
    for config in configs.values():
        training.validate(config)
    train_set, test_set = jobs.load_splits(
        next(iter(configs.values())), _TEST_EXAMPLES.value, download=_DOWNLOAD.value
    )
    data.steps_per_epoch(flags.FLAGS.batch_size, len(train_set))
    path = Path(_RUN.value or f"runs/interpolation-{_SWEEP.value}")
    run = jobs.create_run_directory(
        path,
        {
            "sweep": _SWEEP.value,
            "values": list(values),
            "seeds": list(seeds),
            "test_examples": _TEST_EXAMPLES.value,
            "test_steps": _TEST_STEPS.value,
        },
        list(configs.values()),
    )
    cli.hold(run)
    measured: dict[float, list[Record]] = {value: [] for value in values}
    for number, ((value, seed), config) in enumerate(configs.items(), start=1):
        name = f"{_SWEEP.value}-{value:g}-seed{seed}"
        print(f"network {number} of {len(configs)}: {name}", file=sys.stderr)
        found = measure.train_and_measure(
            config,
            path / name,
            train_set,
            test_set,
            epsilons=[config.epsilon],
            num_steps=_TEST_STEPS.value,
            fresh=flags.FLAGS.fresh,
        )
        measured[value].append(found)
    _report(run, measured, test_set.description, started)


def _read_lists() -> tuple[tuple[float, ...], tuple[int, ...]]:
    given = _VALUES.value or list(_SWEEPS[_SWEEP.value])
    values = tuple(sorted(options.parse_floats("values", list(given))))
    seeds = options.parse_integers("seeds", _SEEDS.value)
    names = [f"{value:g}" for value in values]
    options.check_each_once("values", names)
    options.check_each_once("seeds", seeds)
    steps = _SWEEP.value == "step_size"
    if not all(v > 0 if steps else 0 <= v <= 1 for v in values):
        allowed = "positive" if steps else "in [0, 1]"
        raise ValueError(f"values is {given}; each must be {allowed}.")
    if not 0 < flags.FLAGS.epsilon < math.inf:
        raise ValueError(
            f"epsilon is {flags.FLAGS.epsilon}; it must be positive and finite."
        )
    options.check_at_least(1, _TEST_EXAMPLES, _TEST_STEPS)
    devices = jax.device_count()
    if flags.FLAGS.batch_size % devices:
        raise ValueError(
            f"batch_size is {flags.FLAGS.batch_size}; it must be a multiple of the "
            f"number of devices, {devices}."
        )
    return values, seeds


def _config(value: float, seed: int) -> training.Config:
    if _SWEEP.value == "mix":
        chosen: Record = {"method": "interpolated", "mix": value}
    else:
        steps = flags.FLAGS.num_steps
        size = value * flags.FLAGS.epsilon / max(steps, 1)
        chosen = {"method": "adversarial", "step_size": size}
    return options.config_from_flags(training.Config, seed=seed, **chosen)


def _report(
    run: runs.RunDirectory,
    measured: dict[float, list[Record]],
    description: str,
    started: records.Start,
) -> None:
    seeds = len(next(iter(measured.values())))
    results = {
        "data": description,
        "sweep": _SWEEP.value,
        "epsilon": flags.FLAGS.epsilon,
        "seeds": seeds,
        **records.origin(started),
        "flags": run.flags(),
        "points": [_point(value, found) for value, found in measured.items()],
    }
    seconds = [
        sum(each["training_seconds"] for each in found) for found in measured.values()
    ]
    run.write_json("results.json", results)
    text = make_table(results, seconds)
    run.write_text("table.md", text + "\n")
    by_step = _SWEEP.value == "step_size"
    figures.draw_sweep(
        run,
        results["points"],
        axis="step of the attack in training (multiples of $\\epsilon$ / its steps)"
        if by_step
        else "from adversarial training (0) to data-dependent SNR (1)",
        mark=_USUAL_STEP if by_step else None,
        logarithmic=by_step,
        title=f"{description}, {results['points'][0]['examples']:.0f} test images, "
        f"mean of {seeds} seed{'s' if seeds > 1 else ''}",
        labels={
            "clean": "clean",
            "adversarial": f"L2 PGA, {_TEST_STEPS.value} steps, $\\epsilon$ = "
            f"{results['epsilon']:g}",
        },
    )
    records.report(run, text, started)


def _point(value: float, found: Sequence[Record]) -> Record:
    average = measure.average(found)
    clean, attacked = (
        {part: average["accuracy"][part][place] for part in ("mean", "standard_error")}
        for place in (0, 1)
    )
    return {"value": value, "clean": clean, "adversarial": attacked, **average}


def make_table(results: Record, seconds: Sequence[float]) -> str:
    """Returns the table, with the values of all seeds side by side.

    Args:
      results: the content of results.json.
      seconds: training time of each value.
    """
    title = {
        "step_size": "training step x num_steps / eps",
        "mix": "mix (0 AT, 1 SNR)",
    }[results["sweep"]]
    columns = (
        Column(title, "value", tables.number("{:g}")),
        Column("clean", ("seeds", "clean_accuracy"), tables.percents()),
        Column(
            f"PGA-{results['flags']['test_steps']}, eps {results['epsilon']:g}",
            lambda row: [each[1] for each in row["seeds"]["accuracy"]],
            tables.percents(),
        ),
        Column(
            "standard error",
            lambda row: [row[n]["standard_error"] for n in ("clean", "adversarial")],
            tables.percents(),
        ),
        Column("sigma(J)", ("seeds", "sigma"), tables.numbers()),
        Column("alignment with v1", ("seeds", "alignment"), tables.numbers()),
        Column("training time", "seconds", tables.number("{:.0f} s")),
    )
    rows = [
        {**point, "seconds": taken}
        for point, taken in zip(results["points"], seconds, strict=True)
    ]
    return tables.table(rows, columns)


if __name__ == "__main__":
    cli.run(main)
