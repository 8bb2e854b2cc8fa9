r"""Trains one network with one method; interrupted runs go on where they ended.

  opnorm train --method=data_dependent_snr --run=runs/snr
  opnorm train --preset=roth_cnn7_at_l2 --run=runs/at
  opnorm train --list_presets

The run directory holds flags.json (flags, git revision, versions, hardware),
metrics.jsonl, checkpoints, and training.png. With --validation_fraction=0.1 a tenth of
the training images is held out, and accuracies on it are measured after every epoch;
--keep_best keeps the best checkpoint by them in the folder "best", which every binary
takes as --run=runs/at/best. SIGTERM, Ctrl-C and SIGHUP end a run with
a checkpoint and exit code 143, 130 or 129; a second Ctrl-C ends it at once. One process
at a time writes into the directory. With more --epochs a run goes on, where its
schedule leaves the steps before as they were; --dataset=folder:PATH may name another
path of the same images.

Several processes share a run where each is started with the same flags, and under
SLURM, Open MPI or on a TPU pod with --distributed, elsewhere with

  --coordinator_address=HOST:PORT --num_processes=N --process_id=0 (1, 2, ...)
"""

import dataclasses
import os
import sys
from collections.abc import Mapping
from pathlib import Path

from absl import flags

from experiments.common import (
    cli,
    drawings,
    figures,
    options,
    run_figures,
    tables,
)
from experiments.common.tables import Column
from opnorm import data, runs, training

options.define_config_flags(training.Config)
options.define_preset_flags()
_RUN = flags.DEFINE_string("run", None, "run directory, made if need be (required)")
_DOWNLOAD = flags.DEFINE_boolean(
    "download", False, "download the data set with TensorFlow Datasets if it is missing"
)
_CHECK_DATA = flags.DEFINE_boolean(
    "check_data",
    False,
    "decode every image of both splits before training, and name those that cannot be "
    "decoded; images in memory are decoded in any case",
)
_LOG_EVERY = flags.DEFINE_integer("log_every", 20, "steps between lines of metrics")
_CHECKPOINT_EVERY = flags.DEFINE_integer(
    "checkpoint_every", None, "steps between checkpoints; by default one epoch"
)
_MAX_SKIPPED = flags.DEFINE_integer(
    "max_skipped_updates",
    10,
    "updates in a row that may be skipped since they are not finite",
)
_ROBUST_CHECK_EVERY = flags.DEFINE_integer(
    "robust_check_every",
    None,
    "epochs between measurements of the accuracy under FGSM and PGD on 128 training "
    "images, with a warning if the two part; 0 for none; by default 1 where the method "
    "is adversarial training with one step, and 0 elsewhere",
)
_VALIDATE_EVERY = flags.DEFINE_integer(
    "validate_every",
    None,
    "epochs between measurements of the accuracy on the validation split, on clean "
    "images and under PGA with 10 steps in the norm and epsilon of the training; 0 for "
    "none; by default 1 with a --validation_fraction",
)
_VALIDATION_EXAMPLES = flags.DEFINE_integer(
    "validation_examples",
    1000,
    "validation images that are measured, the same ones each time; 0 for all",
)
_KEEP_BEST = flags.DEFINE_boolean(
    "keep_best",
    False,
    "keep the checkpoint with the largest accuracy under attack on the validation "
    "split in the folder best, the earliest of equal ones; of the method standard and "
    "with epsilon 0 the one with the largest clean accuracy",
)
_CSV = flags.DEFINE_string(
    "csv", None, "also write the metrics as a table to this file"
)
_TENSORBOARD = flags.DEFINE_string(
    "tensorboard", None, "also write the metrics for TensorBoard into this folder"
)
_SHARDING = flags.DEFINE_string(
    "parameter_sharding",
    "replicated",
    "replicated, or fsdp: parameters and optimiser state in parts over the devices",
)
_DISTRIBUTED = flags.DEFINE_boolean(
    "distributed", False, "share the run with the other processes of this cluster job"
)
_COORDINATOR = flags.DEFINE_string(
    "coordinator_address", None, "host:port of the first process that shares the run"
)
_NUM_PROCESSES = flags.DEFINE_integer(
    "num_processes", None, "number of processes that share the run"
)
_PROCESS_ID = flags.DEFINE_integer(
    "process_id", None, "number of this process among them, from 0"
)


def main() -> None:
    """Trains a network, and prints its last metrics."""
    config = options.config_from_flags(training.Config)
    training.validate(config)
    if not _RUN.value:
        raise ValueError("run is not given; it is the directory to write to.")
    on_metrics = _on_metrics()
    train_set = _checked_data(config) if _CHECK_DATA.value else None
    processes = (_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value)
    if _DISTRIBUTED.value or processes != (None, None, None):
        runs.initialize_hosts(*processes)
    try:
        result = training.train(
            config,
            directory=_RUN.value,
            train_set=train_set,
            download=_DOWNLOAD.value,
            parameter_sharding=_SHARDING.value,
            log_every=_LOG_EVERY.value,
            checkpoint_every=_CHECKPOINT_EVERY.value,
            max_skipped_updates=_MAX_SKIPPED.value,
            robust_check_every=_ROBUST_CHECK_EVERY.value,
            validate_every=_VALIDATE_EVERY.value,
            validation_examples=_VALIDATION_EXAMPLES.value or None,
            keep_best=_KEEP_BEST.value,
            on_metrics=on_metrics,
        )
    except runs.ProcessLost as error:
        print(f"train: {error}", file=sys.stderr, flush=True)
        # An orderly end would wait minutes for the process that is gone.
        os._exit(1)
    if not runs.is_writer():
        return
    run = Path(_RUN.value)
    metrics = runs.read_metrics(run)
    best = drawings.read_best(run) if _KEEP_BEST.value else {}
    figures.save(
        runs.RunDirectory(run),
        run_figures.draw_training(metrics, dataclasses.asdict(config), best),
    )
    summary = {
        "run": str(run),
        "method": config.method,
        "steps": result.step,
        **{name: f"{value:.4g}" for name, value in sorted(result.metrics.items())},
    }
    if best:
        summary["best checkpoint"] = f"step {best['step']}, {best['accuracy']:.4g}"
    print(tables.table([summary], [Column(name, name) for name in summary]))


def _on_metrics() -> training.OnMetrics | None:
    """Returns the writers of --csv and --tensorboard as one; None without any."""
    writers = []
    if _CSV.value is not None:
        writers.append(training.csv_metrics(_CSV.value))
    if _TENSORBOARD.value is not None:
        writers.append(training.tensorboard_metrics(_TENSORBOARD.value))
    if not writers:
        return None

    def write(step: int, values: Mapping[str, float]) -> None:
        for writer in writers:
            writer(step, values)

    return write


def _checked_data(config: training.Config) -> data.Dataset | data.Stream:
    """Returns the training set; all images of both splits can be decoded."""
    train_set = training.load_train_set(config, download=_DOWNLOAD.value)
    _decode_all(train_set, "train")
    try:
        test_set = _open_test_set(config)
    except FileNotFoundError as error:
        print(f"check_data: there is no test split: {error}", file=sys.stderr)
        return train_set
    _decode_all(test_set, "test")
    data.check_splits(train_set, test_set)
    return train_set


def _open_test_set(config: training.Config) -> data.Dataset | data.Stream:
    if data.is_streamed(config.dataset):
        return data.open_stream(config.dataset, split="test", data_dir=config.data_dir)
    return data.load(
        config.dataset,
        split="test",
        data_dir=config.data_dir,
        image_size=config.image_size,
    )


def _decode_all(source: data.Dataset | data.Stream, split: str) -> None:
    count = len(source)
    with runs.Progress(count, description=f"{split} split", unit="image") as bar:
        data.check_images(source, on_progress=bar.update)
    print(f"check_data: {count} images of split {split} can be read", file=sys.stderr)


if __name__ == "__main__":
    cli.run(main)
