r"""Tests the main claim of Roth et al. 2020 at small size: regularising the spectral
norm of the Jacobian at the data makes a network robust as adversarial training does,
and regularising the layers' spectral norms does not.

  python -m experiments.equivalence

Trains one network per method and seed, the same for all but the method, and measures
each on the test split: clean accuracy, accuracy against L2 PGA over a range of epsilon,
the singular values of the logits' Jacobian, and how far the perturbations align with
its top right singular vector. Writes results.json, table.md, accuracy.png and
singular_values.png into --run; interrupted, it goes on where it ended.
"""

import dataclasses
import math
import time
from pathlib import Path
from typing import Any

from absl import flags

from experiments.common import cli, figures, measure, pieces
from opnorm import runs, training

_METHODS = ("standard", "adversarial", "data_dependent_snr", "global_snr")

cli.define_config_flags(
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
    "methods", list(_METHODS), f"what to compare, out of {', '.join(_METHODS)}"
)
_SEEDS = flags.DEFINE_list("seeds", ["0", "1"], "seeds, one network per method each")
_ADVERSARIAL_WEIGHT = flags.DEFINE_float(
    "adversarial_weight", 1.0, "lambda of the adversarial term (Roth et al. Eq. 14)"
)
_SNR_WEIGHT = flags.DEFINE_float(
    "snr_weight", 1.0, "lambda of the data-dependent penalty (Roth et al. Eq. 7)"
)
_GLOBAL_WEIGHT = flags.DEFINE_float(
    "global_weight", 1.0, "lambda of the global penalty (Roth et al. Eq. 5)"
)
_ATTACK_STEPS = flags.DEFINE_integer(
    "attack_steps", 5, "steps of the attack in adversarial training"
)
_SEARCH_STEPS = flags.DEFINE_integer(
    "search_steps", 10, "power steps of data-dependent SNR with --search=iterative"
)
_TEST_EXAMPLES = flags.DEFINE_integer(
    "test_examples", 400, "test pictures that each network is measured on"
)
_TEST_STEPS = flags.DEFINE_integer("test_steps", 10, "steps of the measuring attack")
_EPSILONS = flags.DEFINE_list(
    "epsilons",
    ["0.25", "0.5", "0.75", "1.0"],
    "lengths of the measuring attack, in [0, 1] pixel units",
)
pieces.define_fresh_flag()
_DOWNLOAD = flags.DEFINE_boolean("download", False, "download the data if missing")


def main() -> None:
    """Trains and measures every method and seed, writes and prints the results."""
    began, revision = time.monotonic(), runs.git_revision()
    methods, seeds, epsilons = _read_lists()
    configs = {
        (method, seed): _config(method, seed) for method in methods for seed in seeds
    }
    for config in configs.values():
        training.validate(config)
    train_set, test_set = measure.load_splits(
        next(iter(configs.values())), _TEST_EXAMPLES.value, download=_DOWNLOAD.value
    )
    run = measure.create_run_directory(
        _RUN.value,
        {
            "seeds": list(seeds),
            "methods": list(methods),
            "epsilons": list(epsilons),
            "test_examples": _TEST_EXAMPLES.value,
            "test_steps": _TEST_STEPS.value,
        },
        list(configs.values()),
    )
    cli.hold(run)
    measured: dict[str, list[dict[str, Any]]] = {method: [] for method in methods}
    for (method, seed), config in configs.items():
        directory = Path(_RUN.value) / f"{method}-seed{seed}"
        found = measure.train_and_measure(
            config,
            directory,
            train_set,
            test_set,
            epsilons=epsilons,
            num_steps=_TEST_STEPS.value,
            fresh=flags.FLAGS.fresh,
        )
        measured[method].append(found)
    _report(run, measured, epsilons, test_set.description, began, revision)


def _read_lists() -> tuple[tuple[str, ...], tuple[int, ...], tuple[float, ...]]:
    methods = tuple(_METHODS_FLAG.value)
    for method in methods:
        if method not in _METHODS:
            raise ValueError(
                f"methods has {method!r}; it may have {', '.join(_METHODS)}."
            )
    seeds = cli.parse_integers("seeds", _SEEDS.value)
    epsilons = cli.parse_floats("epsilons", _EPSILONS.value)
    for name, values in (("methods", methods), ("seeds", seeds)):
        if not values or len(set(values)) < len(values):
            raise ValueError(f"{name} is {values}; give one or more, each once.")
    if not epsilons or not all(0 < e < math.inf for e in epsilons):
        raise ValueError(f"epsilons is {epsilons}; each must be positive and finite.")
    for flag in (_TEST_EXAMPLES, _TEST_STEPS, _ATTACK_STEPS, _SEARCH_STEPS):
        if flag.value < 1:
            raise ValueError(f"{flag.name} is {flag.value}; it must be at least 1.")
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
    return cli.config_from_flags(training.Config, **chosen)


def _report(
    run: runs.RunDirectory,
    measured: dict[str, list[dict[str, Any]]],
    epsilons: tuple[float, ...],
    description: str,
    began: float,
    revision: str | None,
) -> None:
    averages = {method: measure.average(found) for method, found in measured.items()}
    epsilon = flags.FLAGS.epsilon
    shown = min(epsilons, key=lambda e: abs(e - epsilon))
    place = 1 + epsilons.index(shown)
    rows = [
        {
            "method": figures.LABELS[method],
            "clean": cli.percents(average["seeds"]["clean_accuracy"]),
            f"PGA-{_TEST_STEPS.value}, eps {shown:g}": cli.percents(
                [accuracy[place] for accuracy in average["seeds"]["accuracy"]]
            ),
            "sigma(J)": cli.numbers(average["seeds"]["sigma"]),
            "alignment with v1": cli.numbers(average["seeds"]["alignment"]),
            "training time": f"{sum(f['training_seconds'] for f in found):.0f} s",
        }
        for (method, found), average in zip(
            measured.items(), averages.values(), strict=True
        )
    ]
    table = cli.table(rows)
    run.write_json(
        "results.json",
        {
            "data": description,
            "seeds": len(next(iter(measured.values()))),
            "environment": runs.environment(),
            "git_revision": revision,
            "flags": run.flags(),
            "seconds": time.monotonic() - began,
            "methods": averages,
        },
    )
    run.write_text("table.md", table + "\n")
    count = next(iter(averages.values()))["examples"]
    seeds = len(next(iter(measured.values())))
    title = f"{description}, {count:.0f} test pictures, mean of {seeds} seeds"
    figures.plot_accuracy(
        {method: average["accuracy"] for method, average in averages.items()},
        run.figure_path("accuracy"),
        training_epsilon=epsilon,
        norm="L2",
        title=title,
    )
    figures.plot_singular_values(
        {method: average["singular_values"] for method, average in averages.items()},
        run.figure_path("singular_values"),
        title=title,
    )
    print(table)
    print(f"written to {run.path} in {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    cli.run(main)
