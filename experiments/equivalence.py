r"""Tests the main claim of Roth et al. 2020 at small size: regularising the spectral
norm of the Jacobian at the data makes a network robust as adversarial training does,
and regularising the layers' spectral norms does not.

  opnorm equivalence

Trains one network per method and seed, the same for all but the method, and measures
each on the test split: clean accuracy, accuracy against L2 PGA over a range of epsilon,
the singular values of the logits' Jacobian, and how far the perturbations align with
its top right singular vector. Writes results.json, table.md, accuracy.png and
singular_values.png into --run; interrupted, it goes on where it ended.
"""

import dataclasses
import math
from collections.abc import Mapping

from absl import flags

from experiments.common import cli, drawings, figures, jobs, options, records, tables
from experiments.common.records import Record
from experiments.common.tables import Column
from opnorm import training

_METHODS = ("standard", "adversarial", "data_dependent_snr", "global_snr")

options.define_config_flags(
    training.Config,
    only=tuple(
        field.name
        for field in dataclasses.fields(training.Config)
        if field.name not in ("method", "weight", "seed", "p", "q", "num_steps")
    ),
    train_examples=3600,
    epochs=5,
)
_RUN = flags.DEFINE_string("run", "runs/equivalence", "directory to write to")
_METHODS_FLAG = flags.DEFINE_list(
    "methods", list(_METHODS), f"methods to compare, out of {', '.join(_METHODS)}"
)
_SEEDS = flags.DEFINE_list("seeds", ["0", "1"], "seeds, one network per method each")
_ADVERSARIAL_WEIGHT = options.define_number(
    "adversarial_weight", 1.0, "lambda of the adversarial term (Roth et al. Eq. 14)"
)
_SNR_WEIGHT = options.define_number(
    "snr_weight", 1.0, "lambda of the data-dependent penalty (Roth et al. Eq. 7)"
)
_GLOBAL_WEIGHT = options.define_number(
    "global_weight", 1.0, "lambda of the global penalty (Roth et al. Eq. 5)"
)
_ATTACK_STEPS = flags.DEFINE_integer(
    "attack_steps", 5, "number of steps of the attack in adversarial training"
)
_SEARCH_STEPS = flags.DEFINE_integer(
    "search_steps",
    10,
    "number of power steps of data-dependent SNR with --search=iterative",
)
_EPSILONS = flags.DEFINE_list(
    "epsilons",
    ["0.25", "0.5", "0.75", "1.0"],
    "lengths of the measuring attack, in [0, 1] pixel units",
)
jobs.define_flags(test_examples=400)


def main() -> None:
    """Trains and measures every method and seed, writes and prints the results."""
    started = records.start()
    methods, seeds, epsilons = _read_lists()
    groups = {
        method: {f"{method}-seed{seed}": _config(method, seed) for seed in seeds}
        for method in methods
    }
    settings = {
        "seeds": list(seeds),
        "methods": list(methods),
        "epsilons": list(epsilons),
    }
    measured = jobs.train_and_measure(_RUN.value, groups, settings, epsilons=epsilons)
    _report(measured, started)


def _read_lists() -> tuple[tuple[str, ...], tuple[int, ...], tuple[float, ...]]:
    methods = tuple(_METHODS_FLAG.value)
    for method in methods:
        if method not in _METHODS:
            raise ValueError(
                f"methods has {method!r}; it may have {', '.join(_METHODS)}."
            )
    seeds = options.parse_integers("seeds", _SEEDS.value)
    epsilons = options.parse_floats("epsilons", _EPSILONS.value)
    options.check_each_once("methods", methods)
    options.check_each_once("seeds", seeds)
    if not epsilons or not all(0 < e < math.inf for e in epsilons):
        raise ValueError(f"epsilons is {epsilons}; each must be positive and finite.")
    jobs.check_flags()
    options.check_at_least(1, _ATTACK_STEPS, _SEARCH_STEPS)
    return methods, seeds, epsilons


def _config(method: str, seed: int) -> training.Config:
    weight, num_steps = {
        "standard": (1.0, 10),
        "adversarial": (_ADVERSARIAL_WEIGHT.value, _ATTACK_STEPS.value),
        "data_dependent_snr": (_SNR_WEIGHT.value, _SEARCH_STEPS.value),
        "global_snr": (_GLOBAL_WEIGHT.value, 1),
    }[method]
    chosen = {"method": method, "seed": seed, "weight": weight, "num_steps": num_steps}
    # Flags that belong to one method are not given to the others.
    default = training.Config()
    if method != "data_dependent_snr":
        names = ("search", "variant", "penalty_fraction")
        chosen |= {name: getattr(default, name) for name in names}
    if method != "adversarial":
        chosen["step_size"] = None
    return options.config_from_flags(training.Config, **chosen)


def _report(measured: jobs.Measured, started: records.Start) -> None:
    run, averages = measured.run, measured.averages
    trained_with = training.in_pixels(options.config_from_flags(training.Config))
    results = {
        "data": measured.data,
        "seeds": measured.seeds,
        **records.origin(started),
        "flags": run.flags(),
        # For the figures.
        "training_epsilon": trained_with.epsilon,
        "methods": averages,
    }
    run.write_json("results.json", results)
    text = make_table(results, measured.seconds)
    run.write_text("table.md", text + "\n")
    drawings.write(run, results)
    records.report(run, text, started)


def make_table(results: Record, seconds: Mapping[str, float]) -> str:
    """Returns the table, with the values of all seeds side by side.

    Args:
      results: the content of results.json.
      seconds: training time of each method.
    """
    held = results["flags"]
    # The length of the attack that is nearest to that of the training.
    trained = held["configs"][0]["epsilon"]
    epsilons = held["epsilons"]
    place = min(range(len(epsilons)), key=lambda i: abs(epsilons[i] - trained))
    columns = (
        Column("method", "method", figures.label),
        Column("clean", ("seeds", "clean_accuracy"), tables.percents()),
        Column(
            f"PGA-{held['test_steps']}, eps {epsilons[place]:g}",
            lambda row: [each[1 + place] for each in row["seeds"]["accuracy"]],
            tables.percents(),
        ),
        Column("sigma(J)", ("seeds", "sigma"), tables.numbers()),
        Column("alignment with v1", ("seeds", "alignment"), tables.numbers()),
        Column("training time", lambda row: f"{seconds[row['method']]:.0f} s"),
    )
    return tables.table(tables.named(results["methods"], "method"), columns)


if __name__ == "__main__":
    cli.run(main)
