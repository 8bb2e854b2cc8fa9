r"""Trains the rows of a paper's table from its presets and prints them beside its own.

  python -m experiments.reproduce --download              # Roth et al., Table 2, CNN7
  python -m experiments.reproduce --dataset=cifar10_mini --width=16 \
    --standard_epochs=20 --epochs=4                        # reduced, on a CPU

The first preset is trained first; the others that the paper starts from a trained
network start from that one. Flags of the training replace the values of all presets.
Interrupted, it goes on where it ended. The directory holds one run per row, as
experiments.spectrum and experiments.linearity take them, results.json, table.md and
figures of accuracy against the length of PGA perturbations.
"""

import dataclasses
from pathlib import Path

from absl import flags

from experiments.common import (
    cache,
    cli,
    figures,
    jobs,
    measure,
    options,
    records,
    tables,
)
from experiments.common.records import Record
from experiments.common.tables import Column
from opnorm import data, runs, training

TABLE_2 = (
    "roth_cnn7_standard",
    "roth_cnn7_at_l2",
    "roth_cnn7_at_linf",
    "roth_cnn7_snr",
    "roth_cnn7_onr_linf",
    "roth_cnn7_global_snr",
)

options.define_config_flags(training.Config)
_PRESETS = flags.DEFINE_list(
    "presets",
    list(TABLE_2),
    "presets, one for each row; the first is the network that others start from",
)
_RUN = flags.DEFINE_string("run", "runs/table2", "directory to write to")
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
cache.define_fresh_flag()
_DOWNLOAD = options.define_download_flag()


def main() -> None:
    """Trains and measures every row, writes and prints the table."""
    started = records.start()
    lengths = {
        2.0: options.parse_floats("l2_epsilons", _L2.value),
        float("inf"): options.parse_floats("linf_epsilons", _LINF.value),
    }
    for p, epsilons in lengths.items():
        if not epsilons or min(epsilons) <= 0:
            name = measure.norm_name(p).lower()
            raise ValueError(f"{name}_epsilons is {epsilons}; each must be positive.")
    options.check_at_least(1, _TEST_EXAMPLES, _TEST_STEPS)
    rows = _rows()
    run = runs.RunDirectory.for_results(_RUN.value)
    first = next(iter(rows.values()))
    train_set, test_set = jobs.load_splits(
        first, _TEST_EXAMPLES.value, download=_DOWNLOAD.value
    )
    run = cli.hold(runs.RunDirectory(_RUN.value), own=list(rows))
    measured = {
        name: _train_and_measure(name, config, train_set, test_set, lengths)
        for name, config in rows.items()
    }
    results = {
        "data": test_set.description,
        "train_examples": len(train_set),
        "test_examples": len(test_set),
        **records.origin(started),
        "rows": {
            name: {"config": dataclasses.asdict(config), **measured[name]}
            for name, config in rows.items()
        },
    }
    run.write_json("results.json", results)
    text = make_table(results)
    run.write_text("table.md", text + "\n")
    for p in lengths:
        norm = measure.norm_name(p)
        figures.plot_accuracy(
            {_label(name): found["accuracy"][norm] for name, found in measured.items()},
            run.figure_path(f"accuracy_{norm}"),
            training_epsilon=max(
                (
                    training.in_pixels(config).epsilon
                    for config in rows.values()
                    if config.p == p
                ),
                default=None,
            ),
            norm=norm,
            title=f"{test_set.description}, {len(test_set)} test images",
        )
    records.report(run, text, started)


def _rows() -> dict[str, training.Config]:
    """Returns the configuration of each preset, checked."""
    names = _PRESETS.value
    options.check_each_once("presets", names)
    given = options.given_fields(training.Config)
    rows = {}
    for name in names:
        preset = training.get_preset(name)
        changes = dict(given)
        if name == names[0] and _STANDARD_EPOCHS.value is not None:
            changes["epochs"] = _STANDARD_EPOCHS.value
        if "init_from" in preset.needs and name != names[0]:
            changes.setdefault("init_from", str(Path(_RUN.value) / names[0]))
        rows[name] = dataclasses.replace(preset.config, **changes)
        training.validate(rows[name])
    # They are loaded once.
    jobs.check_alike(rows, training.DATA_FIELDS)
    return rows


def _train_and_measure(
    name: str,
    config: training.Config,
    train_set: data.Dataset | data.Stream,
    test_set: data.Dataset,
    lengths: dict[float, tuple[float, ...]],
) -> Record:
    directory = Path(_RUN.value) / name
    result = training.train(config, directory=directory, train_set=train_set)
    settings = {
        "lengths": {measure.norm_name(p): list(e) for p, e in lengths.items()},
        "test_examples": len(test_set),
        "test_steps": _TEST_STEPS.value,
    }
    identity = cache.fingerprint(config, result.network, test_set)
    settings |= cache.network_settings(config, identity)

    def compute() -> Record:
        curves = {
            measure.norm_name(p): measure.accuracy_curve(
                result.network,
                test_set,
                measure.Pga(p, _TEST_STEPS.value, config.seed),
                epsilons,
            )
            for p, epsilons in lengths.items()
        }
        return {"steps": result.step, "accuracy": curves}

    return cache.cached(
        directory / "accuracies.json", settings, compute, fresh=flags.FLAGS.fresh
    )


def make_table(results: Record) -> str:
    """Returns the table, with the accuracies that the paper prints beside those here.

    Args:
      results: the content of results.json; the paper's networks have other sizes, and
        were trained on more data.
    """
    rows = tables.named(results["rows"], "preset")
    columns = [
        Column("row", "preset", _label),
        Column("clean", ("accuracy", "L2", "mean", 0), tables.percent()),
        Column("clean, paper", "preset", _printed),
    ]
    columns += [
        Column(
            f"PGA {norm} {epsilon:.3g}",
            ("accuracy", norm, "mean", place),
            tables.percent(),
        )
        for norm, curve in rows[0]["accuracy"].items()
        for place, epsilon in enumerate(curve["epsilon"])
        if place > 0
    ]
    return tables.table(rows, columns)


def _printed(preset: str) -> str:
    return training.get_preset(preset).paper.get("clean accuracy", "")


def _label(name: str) -> str:
    return name.removeprefix("roth_").replace("_", " ")


if __name__ == "__main__":
    cli.run(main)
