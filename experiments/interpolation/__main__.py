r"""Compares adversarial training with data-dependent SNR along the paths between them.

  opnorm interpolation --sweep=step_size
  opnorm interpolation --sweep=mix

Roth et al. 2020 show that adversarial training with an infinite step is data-dependent
operator-norm regularisation. Two sweeps look at that from both sides, each with one
network for every value and seed, the same for all but the value:

- step_size (their Fig. 6): adversarial training at one epsilon, with the step of the
  training attack in multiples of epsilon / num_steps; the test attack keeps its usual
  step, 2 epsilon / test_steps.
- mix (their Fig. 7): the objective goes from that of adversarial training (0) to that
  of data-dependent SNR (1).

Each network is measured on the test split: clean accuracy, accuracy against L2 PGA of
the training epsilon, and the logits' Jacobian. With several seeds errors are over the
networks of a value, with one seed over the test images. Writes results.json, table.md
and accuracy.png into --run; interrupted, it goes on where it ended.
"""

import dataclasses
from collections.abc import Sequence

from absl import flags

from experiments.common import cli, drawings, jobs, options, records
from experiments.common.records import Record
from experiments.interpolation import tables
from opnorm import training

# The default values of each sweep.
_SWEEPS = {
    "step_size": ("0.5", "1", "2", "5", "10", "inf"),
    "mix": ("0", "0.25", "0.5", "0.75", "1"),
}

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
jobs.define_flags(test_examples=400)


def main() -> None:
    """Trains and measures every value and seed, writes and prints the results."""
    started = records.start()
    values, seeds = _read_lists()
    groups = {
        f"{value:g}": {
            f"{_SWEEP.value}-{value:g}-seed{seed}": _config(value, seed)
            for seed in seeds
        }
        for value in values
    }
    measured = jobs.train_and_measure(
        _RUN.value or f"runs/interpolation-{_SWEEP.value}",
        groups,
        {"sweep": _SWEEP.value, "values": list(values), "seeds": list(seeds)},
        epsilons=[_epsilon()],
    )
    _report(measured, values, started)


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
    options.check_positive("epsilon", flags.FLAGS.epsilon)
    jobs.check_flags()
    return values, seeds


def _config(value: float, seed: int) -> training.Config:
    if _SWEEP.value == "mix":
        chosen: Record = {"method": "interpolated", "mix": value}
    else:
        steps = flags.FLAGS.num_steps
        size = value * flags.FLAGS.epsilon / max(steps, 1)
        chosen = {"method": "adversarial", "step_size": size}
    return options.config_from_flags(training.Config, seed=seed, **chosen)


def _epsilon() -> float:
    """Returns the length of the attack in training, in [0, 1] pixel units."""
    config = options.config_from_flags(training.Config)
    return training.in_pixels(config).epsilon


def _report(
    measured: jobs.Measured, values: Sequence[float], started: records.Start
) -> None:
    run, epsilon = measured.run, _epsilon()
    averages = zip(values, measured.averages.values(), strict=True)
    results = {
        "data": measured.data,
        "sweep": _SWEEP.value,
        "epsilon": epsilon,
        "seeds": measured.seeds,
        **records.origin(started),
        "flags": run.flags(),
        "points": [_point(value, average) for value, average in averages],
    }
    run.write_json("results.json", results)
    text = tables.make_table(results, list(measured.seconds.values()))
    run.write_text("table.md", text + "\n")
    drawings.write(run, results)
    records.report(run, text, started)


def _point(value: float, average: Record) -> Record:
    several = len(average["seeds"]["accuracy"]) > 1
    found = (average["over_networks"] if several else average)["accuracy"]
    clean, attacked = (
        {part: found[part][place] for part in ("mean", "standard_error")}
        for place in (0, 1)
    )
    return {"value": value, "clean": clean, "adversarial": attacked, **average}


if __name__ == "__main__":
    cli.run(main)
