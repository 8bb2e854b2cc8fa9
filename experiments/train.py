r"""Trains one network with one method; interrupted runs go on where they ended.

  python -m experiments.train --method=data_dependent_snr --run=runs/snr

The run directory holds flags.json (flags, git revision, versions, hardware),
metrics.jsonl, checkpoints, and training.png.
"""

from pathlib import Path

from absl import flags

from experiments import cli, figures
from opnorm import training

cli.define_config_flags(training.Config)
_RUN = flags.DEFINE_string("run", None, "run directory, made if need be (required)")
_DOWNLOAD = flags.DEFINE_boolean(
    "download", False, "download the data set with TensorFlow Datasets if it is missing"
)
_LOG_EVERY = flags.DEFINE_integer("log_every", 20, "steps between lines of metrics")
_CHECKPOINT_EVERY = flags.DEFINE_integer(
    "checkpoint_every", None, "steps between checkpoints; by default one epoch"
)


def main() -> None:
    """Trains, and prints what came of it."""
    config = cli.config_from_flags(training.Config)
    training.validate(config)
    if not _RUN.value:
        raise ValueError("run is not given; it is the directory to write to.")
    result = training.train(
        config,
        directory=_RUN.value,
        download=_DOWNLOAD.value,
        log_every=_LOG_EVERY.value,
        checkpoint_every=_CHECKPOINT_EVERY.value,
    )
    run = Path(_RUN.value)
    metrics = training.read_metrics(run)
    figures.plot_training(metrics, run / "training.png", title=config.method)
    print(
        cli.table(
            [
                {
                    "run": str(run),
                    "method": config.method,
                    "steps": result.step,
                    **{k: f"{v:.4g}" for k, v in sorted(result.metrics.items())},
                }
            ]
        )
    )


if __name__ == "__main__":
    cli.run(main)
