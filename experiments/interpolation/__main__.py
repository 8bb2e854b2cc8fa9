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
import time
from pathlib import Path
from typing import Any

import jax
from absl import flags

from experiments.common import cli, curvature_figures, measure, pieces
from opnorm import data, runs, training

_SWEEPS = {
    "step_size": ("0.5", "1", "2", "5", "10", "inf"),
    "mix": ("0", "0.25", "0.5", "0.75", "1"),
}
# The step of an attack is this times epsilon / its steps unless it is swept.
_USUAL_STEP = 2.0

cli.define_config_flags(
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
    "sweep", "mix", list(_SWEEPS), "what differs between the networks"
)
_VALUES = flags.DEFINE_list(
    "values",
    None,
    "what it is: multiples of epsilon / num_steps, inf for the limit, or numbers in "
    "[0, 1]; by default "
    + " or ".join(f"{','.join(values)} ({name})" for name, values in _SWEEPS.items()),
)
_RUN = flags.DEFINE_string(
    "run", None, "directory to write to; by default runs/interpolation-<sweep>"
)
_SEEDS = flags.DEFINE_list("seeds", ["0"], "seeds, one network per value each")
_TEST_EXAMPLES = flags.DEFINE_integer(
    "test_examples", 400, "test pictures that each network is measured on"
)
_TEST_STEPS = flags.DEFINE_integer("test_steps", 10, "steps of the measuring attack")
pieces.define_fresh_flag()
_DOWNLOAD = flags.DEFINE_boolean("download", False, "download the data if missing")


def main() -> None:
    """Trains and measures every value and seed, writes and prints the results."""
    began, revision = time.monotonic(), runs.git_revision()
    values, seeds = _read_lists()
    configs = {(v, seed): _config(v, seed) for v in values for seed in seeds}
    for config in configs.values():
        training.validate(config)
    train_set, test_set = measure.load_splits(
        next(iter(configs.values())), _TEST_EXAMPLES.value, download=_DOWNLOAD.value
    )
    data.steps_per_epoch(flags.FLAGS.batch_size, len(train_set))
    path = Path(_RUN.value or f"runs/interpolation-{_SWEEP.value}")
    run = measure.create_run_directory(
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
    measured: dict[float, list[dict[str, Any]]] = {value: [] for value in values}
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
    _report(run, measured, test_set.description, began, revision)


def _read_lists() -> tuple[tuple[float, ...], tuple[int, ...]]:
    given = _VALUES.value or list(_SWEEPS[_SWEEP.value])
    values = tuple(sorted(cli.parse_floats("values", list(given))))
    seeds = cli.parse_integers("seeds", _SEEDS.value)
    names = [f"{value:g}" for value in values]
    for name, items in (("values", names), ("seeds", seeds)):
        if not items or len(set(items)) < len(items):
            raise ValueError(f"{name} is {items}; give one or more, each once.")
    steps = _SWEEP.value == "step_size"
    if not all(v > 0 if steps else 0 <= v <= 1 for v in values):
        allowed = "positive" if steps else "in [0, 1]"
        raise ValueError(f"values is {given}; each must be {allowed}.")
    if not 0 < flags.FLAGS.epsilon < math.inf:
        raise ValueError(
            f"epsilon is {flags.FLAGS.epsilon}; it must be positive and finite."
        )
    for flag in (_TEST_EXAMPLES, _TEST_STEPS):
        if flag.value < 1:
            raise ValueError(f"{flag.name} is {flag.value}; it must be at least 1.")
    devices = jax.device_count()
    if flags.FLAGS.batch_size % devices:
        raise ValueError(
            f"batch_size is {flags.FLAGS.batch_size}; it must be a multiple of the "
            f"number of devices, {devices}."
        )
    return values, seeds


def _config(value: float, seed: int) -> training.Config:
    if _SWEEP.value == "mix":
        chosen: dict[str, Any] = {"method": "interpolated", "mix": value}
    else:
        steps = flags.FLAGS.num_steps
        size = value * flags.FLAGS.epsilon / max(steps, 1)
        chosen = {"method": "adversarial", "step_size": size}
    return cli.config_from_flags(training.Config, seed=seed, **chosen)


def _report(
    run: runs.RunDirectory,
    measured: dict[float, list[dict[str, Any]]],
    description: str,
    began: float,
    revision: str | None,
) -> None:
    points = []
    for value, found in measured.items():
        average = measure.average(found)
        accuracy = average["accuracy"]
        clean, attacked = (
            {part: accuracy[part][place] for part in ("mean", "standard_error")}
            for place in (0, 1)
        )
        point = {"value": value, "clean": clean, "adversarial": attacked, **average}
        points.append(point)
    epsilon, steps = flags.FLAGS.epsilon, _TEST_STEPS.value
    attack = f"PGA-{steps}, eps {epsilon:g}"
    swept = {
        "step_size": "training step x num_steps / eps",
        "mix": "mix (0 AT, 1 SNR)",
    }[_SWEEP.value]
    table = cli.table(
        [
            {
                swept: f"{value:g}",
                "clean": cli.percents(point["seeds"]["clean_accuracy"]),
                attack: cli.percents([a[1] for a in point["seeds"]["accuracy"]]),
                "standard error": cli.percents(
                    [point[n]["standard_error"] for n in ("clean", "adversarial")]
                ),
                "sigma(J)": cli.numbers(point["seeds"]["sigma"]),
                "alignment with v1": cli.numbers(point["seeds"]["alignment"]),
                "training time": f"{sum(f['training_seconds'] for f in found):.0f} s",
            }
            for point, (value, found) in zip(points, measured.items(), strict=True)
        ]
    )
    seeds = len(next(iter(measured.values())))
    run.write_json(
        "results.json",
        {
            "data": description,
            "sweep": _SWEEP.value,
            "epsilon": epsilon,
            "seeds": seeds,
            "environment": runs.environment(),
            "git_revision": revision,
            "flags": run.flags(),
            "seconds": time.monotonic() - began,
            "points": points,
        },
    )
    run.write_text("table.md", table + "\n")
    by_step = _SWEEP.value == "step_size"
    curvature_figures.draw_sweep(
        run,
        points,
        axis="step of the attack in training (multiples of $\\epsilon$ / its steps)"
        if by_step
        else "from adversarial training (0) to data-dependent SNR (1)",
        mark=_USUAL_STEP if by_step else None,
        logarithmic=by_step,
        title=f"{description}, {points[0]['examples']:.0f} test pictures, "
        f"mean of {seeds} seed{'s' if seeds > 1 else ''}",
        labels={
            "clean": "clean",
            "adversarial": f"L2 PGA, {steps} steps, $\\epsilon$ = {epsilon:g}",
        },
    )
    print(table)
    print(f"written to {run.path} in {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    cli.run(main)
