r"""Trains the rows of a paper's table from its presets and prints them beside its own.

  python -m experiments.reproduce --download              # Roth et al., Table 2, CNN7
  python -m experiments.reproduce --dataset=cifar10_mini --width=16 \
    --standard_epochs=20 --epochs=4                        # reduced, on a CPU

The first preset is trained first; the others that the paper starts from a trained
network start from that one. Flags of the training replace what all presets say.
Interrupted, it goes on where it ended. The directory holds one run per row, as
experiments.spectrum and experiments.linearity take them, results.json, table.md and
figures of accuracy against the length of PGA perturbations.
"""

import dataclasses
import time
from pathlib import Path
from typing import Any

from absl import flags

from experiments.common import cli, figures, measure, pieces
from opnorm import runs, training
from opnorm.training import DATA_FIELDS

TABLE_2 = (
    "roth_cnn7_standard",
    "roth_cnn7_at_l2",
    "roth_cnn7_at_linf",
    "roth_cnn7_snr",
    "roth_cnn7_onr_linf",
    "roth_cnn7_global_snr",
)

cli.define_config_flags(training.Config)
_PRESETS = flags.DEFINE_list(
    "presets", list(TABLE_2), "the rows; the first is the network others start from"
)
_RUN = flags.DEFINE_string("run", "runs/table2", "directory to write to")
_STANDARD_EPOCHS = flags.DEFINE_integer(
    "standard_epochs", None, "epochs of the first preset; by default as for the others"
)
_TEST_EXAMPLES = flags.DEFINE_integer("test_examples", 1000, "test pictures")
_TEST_STEPS = flags.DEFINE_integer("test_steps", 10, "steps of the measuring attacks")
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
pieces.define_fresh_flag()
_DOWNLOAD = flags.DEFINE_boolean("download", False, "download the data if missing")


def main() -> None:
    """Trains and measures every row, writes and prints the table."""
    began, revision = time.monotonic(), runs.git_revision()
    lengths = {
        2.0: cli.parse_floats("l2_epsilons", _L2.value),
        float("inf"): cli.parse_floats("linf_epsilons", _LINF.value),
    }
    for p, epsilons in lengths.items():
        if not epsilons or min(epsilons) <= 0:
            name = measure.norm_name(p).lower()
            raise ValueError(f"{name}_epsilons is {epsilons}; each must be positive.")
    for flag in (_TEST_EXAMPLES, _TEST_STEPS):
        if flag.value < 1:
            raise ValueError(f"{flag.name} is {flag.value}; it must be at least 1.")
    rows = _rows()
    run = runs.RunDirectory.for_results(_RUN.value)
    first = next(iter(rows.values()))
    train_set, test_set = measure.load_splits(
        first, _TEST_EXAMPLES.value, download=_DOWNLOAD.value
    )
    run = cli.hold(runs.RunDirectory(_RUN.value), own=list(rows))
    measured = {
        name: _train_and_measure(name, config, train_set, test_set, lengths)
        for name, config in rows.items()
    }
    run.write_json(
        "results.json",
        {
            "data": test_set.description,
            "train_examples": len(train_set),
            "test_examples": len(test_set),
            "environment": runs.environment(),
            "git_revision": revision,
            "seconds": time.monotonic() - began,
            "rows": {
                name: {"config": dataclasses.asdict(config), **measured[name]}
                for name, config in rows.items()
            },
        },
    )
    table = cli.table([_line(name, rows[name], measured[name]) for name in rows])
    run.write_text("table.md", table + "\n")
    for p in lengths:
        norm = measure.norm_name(p)
        figures.plot_accuracy(
            {_label(name): found["accuracy"][norm] for name, found in measured.items()},
            run.figure_path(f"accuracy_{norm}"),
            training_epsilon=max(
                (config.epsilon for config in rows.values() if config.p == p),
                default=None,
            ),
            norm=norm,
            title=f"{test_set.description}, {len(test_set)} test pictures",
        )
    print(table)
    print(f"written to {run.path} in {time.monotonic() - began:.0f} s")


def _rows() -> dict[str, training.Config]:
    """The configuration of each preset, checked."""
    names = _PRESETS.value
    if not names or len(set(names)) < len(names):
        raise ValueError(f"presets is {names}; give one or more, each once.")
    fields = [field.name for field in dataclasses.fields(training.Config)]
    given = {n: flags.FLAGS[n].value for n in fields if flags.FLAGS[n].present}
    rows = {}
    for name in names:
        preset = training.get_preset(name)
        changes: dict[str, Any] = dict(given)
        if name == names[0] and _STANDARD_EPOCHS.value is not None:
            changes["epochs"] = _STANDARD_EPOCHS.value
        if "init_from" in preset.needs and name != names[0]:
            changes.setdefault("init_from", str(Path(_RUN.value) / names[0]))
        rows[name] = dataclasses.replace(preset.config, **changes)
        training.validate(rows[name])
    # They are loaded once.
    measure.check_alike(rows, DATA_FIELDS)
    return rows


def _train_and_measure(
    name: str,
    config: training.Config,
    train_set: Any,
    test_set: Any,
    lengths: dict[float, tuple[float, ...]],
) -> dict[str, Any]:
    directory = Path(_RUN.value) / name
    result = training.train(config, directory=directory, train_set=train_set)
    settings = {
        "lengths": {measure.norm_name(p): list(e) for p, e in lengths.items()},
        "test_examples": len(test_set),
        "test_steps": _TEST_STEPS.value,
    }
    identity = pieces.fingerprint(config, result.network, test_set)
    settings |= pieces.network_settings(config, identity)

    def compute() -> dict[str, Any]:
        curves = {
            measure.norm_name(p): measure.accuracy_curve(
                result.network,
                test_set,
                p=p,
                epsilons=epsilons,
                num_steps=_TEST_STEPS.value,
                batch_size=100,
                seed=config.seed,
            )
            for p, epsilons in lengths.items()
        }
        return {"steps": result.step, "accuracy": curves}

    return pieces.cached(
        directory / "accuracies.json", settings, compute, fresh=flags.FLAGS.fresh
    )


def _line(name: str, config: training.Config, found: dict[str, Any]) -> dict[str, str]:
    """A row of the table; the paper's value is of its own size and data."""
    line = {
        "row": _label(name),
        "clean": f"{100 * found['accuracy']['L2']['mean'][0]:.1f} %",
        "clean, paper": training.get_preset(name).paper.get("clean accuracy", ""),
    }
    for norm, curve in found["accuracy"].items():
        for epsilon, mean in list(zip(curve["epsilon"], curve["mean"], strict=True))[
            1:
        ]:
            line[f"PGA {norm} {epsilon:.3g}"] = f"{100 * mean:.1f} %"
    return line


def _label(name: str) -> str:
    return name.removeprefix("roth_").replace("_", " ")


if __name__ == "__main__":
    cli.run(main)
