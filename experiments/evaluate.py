r"""Evaluates a trained network: accuracy against epsilon, Jacobian norms, alignment.

  python -m experiments.evaluate --run=runs/snr

Writes evaluation.json, accuracy.png and singular_values.png into the run directory.
"""

import math
from pathlib import Path

from absl import flags

from experiments import cli, figures, measure
from opnorm import data, training

_RUN = flags.DEFINE_string(
    "run", None, "run directory, or a folder of checkpoints (required)"
)
_OUT = flags.DEFINE_string("out", None, "where to write; by default the run directory")
_DATASET = flags.DEFINE_string(
    "dataset", None, "data set to evaluate on; by default the one trained on"
)
_DATA_DIR = flags.DEFINE_string(
    "data_dir", None, "where TensorFlow Datasets keeps data"
)
_DOWNLOAD = flags.DEFINE_boolean("download", False, "download the data if missing")
_SPLIT = flags.DEFINE_string("split", "test", "split to evaluate on")
_EXAMPLES = flags.DEFINE_integer("examples", None, "how many examples; default all")
_P = flags.DEFINE_float("p", None, "norm of the attack; by default the training's")
_EPSILONS = flags.DEFINE_list(
    "epsilons",
    ["0.125", "0.25", "0.5", "0.75", "1.0"],
    "lengths of the attack's perturbations, in [0, 1] pixel units, besides 0",
)
_NUM_STEPS = flags.DEFINE_integer("num_steps", 10, "steps of the attack")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 100, "examples per compiled call")
_SEED = flags.DEFINE_integer("seed", 0, "of the attack's random starts")


def main() -> None:
    """Evaluates, writes results, prints a table."""
    if not _RUN.value:
        raise ValueError("run is not given; it is the run directory to evaluate.")
    epsilons = cli.parse_floats("epsilons", _EPSILONS.value)
    for name, value in (
        ("num_steps", _NUM_STEPS.value),
        ("batch_size", _BATCH_SIZE.value),
    ):
        if value < 1:
            raise ValueError(f"{name} is {value}; it must be at least 1.")
    if not epsilons or not all(0 <= e < math.inf for e in epsilons):
        raise ValueError(
            f"epsilons are {epsilons}; each must be finite and at least 0."
        )
    config, params, batch_stats, metadata = training.load_run(_RUN.value)
    p = config.p if _P.value is None else _P.value
    if not p >= 1:
        raise ValueError(f"p is {p}; it must be in [1, inf].")
    test_set = data.load(
        _DATASET.value or config.dataset,
        split=_SPLIT.value,
        data_dir=_DATA_DIR.value or config.data_dir,
        download=_DOWNLOAD.value,
        limit=_EXAMPLES.value,
    )
    found = measure.measure(
        config,
        params,
        batch_stats,
        test_set,
        p=p,
        epsilons=epsilons,
        alignment_epsilon=config.epsilon,
        num_steps=_NUM_STEPS.value,
        batch_size=_BATCH_SIZE.value,
        seed=_SEED.value,
    )
    out = training.RunDirectory(_OUT.value or _RUN.value)
    out.write_json(
        "evaluation.json",
        {
            "run": _RUN.value,
            "step": metadata["step"],
            "data": test_set.description,
            "split": _SPLIT.value,
            "p": p,
            "num_steps": _NUM_STEPS.value,
            "seed": _SEED.value,
            "environment": training.environment(),
            "git_revision": training.git_revision(),
            **found,
        },
    )
    title = f"{test_set.description}, {len(test_set)} pictures"
    norm = measure.norm_name(p)
    figures.plot_accuracy(
        {config.method: found["accuracy"]},
        out.figure_path("accuracy"),
        training_epsilon=config.epsilon,
        norm=norm,
        title=f"PGA-{_NUM_STEPS.value} accuracy; {title}",
    )
    figures.plot_singular_values(
        {config.method: found["singular_values"]},
        out.figure_path("singular_values"),
        title=title,
    )
    accuracy = found["accuracy"]
    print(
        cli.table(
            [
                {
                    "epsilon": f"{epsilon:g}",
                    f"accuracy, PGA-{_NUM_STEPS.value} {norm}": f"{mean:.1%} "
                    f"± {error:.1%}",
                }
                for epsilon, mean, error in zip(*accuracy.values(), strict=True)
            ]
        )
    )
    print(
        f"sigma(J) {found['sigma']['mean']:.3f}, alignment with v1 "
        f"{found['alignment']['mean']:.3f} (random direction "
        f"{found['random_alignment']:.3f}); written to {Path(out.path)}"
    )


if __name__ == "__main__":
    cli.run(main)
