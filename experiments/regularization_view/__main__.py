r"""Tests the claims of "Towards Understanding the Regularization of Adversarial
Robustness on Neural Networks": adversarial training makes a network less confident, so
that the gap in the loss falls while the test error rises.

  opnorm regularization_view --train
  opnorm regularization_view --run=runs/a --run=runs/b --out=runs/c

--run measures trained networks: without an attack, or adversarial_only with p=inf. The
strength of the attack, PGD or FGSM, and the clipping of spectral norms are read from
their configurations. Networks that differ in seed alone are one row; those of several
recipes or data sets are compared side by side. --train trains the networks first: one
for each of --strengths and --seeds, then clipped ones for --clips and --clip_seeds,
then those trained with FGSM for --fgsm_seeds. Strengths are levels of 255 of
--epsilon_unit.

Measures accuracies and losses on clean images and their gaps, margins, probabilities,
accuracy under PGD of length --test_level, the largest rise of the loss for each of
--variation_levels, and the standard deviations of the layers' singular values. Writes
results.json, tables.md (the claims, and Tables 1 to 6 beside the paper's numbers) and
figures of the paper's Figs. 1 and 3 to 11.

Networks are kept in networks/ of --out. After an interruption it goes on where it
ended. Tables and results are written after each network; those that are not there yet
are missing in them.
"""

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import jax
from absl import flags

from experiments.common import cache, cli, comparison, drawings, jobs, options, records
from experiments.common.cache import Arrays
from experiments.common.records import Record
from experiments.regularization_view import measure, networks, summary, tables
from experiments.regularization_view.measure import Examples, Settings
from experiments.regularization_view.networks import Trained
from opnorm import data, runs, training
from opnorm.training import Config

# Flags of the training that measurements of trained networks use too.
_OF_GIVEN = ("data_dir",)

options.define_config_flags(
    Config,
    only=networks.FIELDS,
    train_examples=1000,
    model="fixup",
    depth=20,
    width=8,
    normalization="cifar10",
    num_steps=10,
    step_size=2 / 255,
    optimizer="sgd",
    learning_rate=0.05,
    schedule="step",
    weight_decay=1e-4,
    epochs=8,
)
_TRAIN = flags.DEFINE_boolean("train", False, "train the networks to measure")
_RUN = flags.DEFINE_multi_string(
    "run", None, "run of a trained network to measure; may be given several times"
)
_OUT = flags.DEFINE_string("out", "runs/regularization_view", "directory to write to")
_STRENGTHS = flags.DEFINE_list(
    "strengths",
    ["0", "4", "8", "16"],
    "lengths of the Linf attack in training, in levels of 255; 0 is without",
)
_SEEDS = flags.DEFINE_list("seeds", ["0"], "seeds, a network for each strength each")
_CLIPS = flags.DEFINE_list(
    "clips", [], "bounds to which spectral norms of further networks are clipped"
)
_CLIP_SEEDS = flags.DEFINE_list("clip_seeds", ["0"], "seeds of the clipped networks")
_CLIPPING = flags.DEFINE_enum(
    "clipping",
    networks.CLIPPINGS[0],
    list(networks.CLIPPINGS),
    "how norms are clipped after each epoch, as --spectral_norm_method elsewhere",
)
_FGSM_SEEDS = flags.DEFINE_list(
    "fgsm_seeds", [], "seeds of further networks that are trained with FGSM"
)
_TEST_EXAMPLES = flags.DEFINE_integer(
    "test_examples", 500, "largest number of test images to measure on"
)
_TRAIN_MEASURED = flags.DEFINE_integer(
    "train_measured", 1000, "largest number of training images to measure on"
)
_TEST_LEVEL = options.define_number(
    "test_level", 8.0, "length of the measuring attack, in levels of 255"
)
_TEST_STEPS = flags.DEFINE_integer(
    "test_steps", 10, "number of steps of the measuring attacks"
)
_VARIATION = flags.DEFINE_list(
    "variation_levels",
    ["1", "2", "4"],
    "lengths of the attacks on the loss, in levels of 255",
)
_BOUNDARY = flags.DEFINE_integer(
    "boundary_examples",
    50,
    "number of training images whose nearest point of another class is sought",
)
_BATCH = flags.DEFINE_integer("test_batch_size", 100, "images per compiled call")
cache.define_fresh_flag()
_DOWNLOAD = options.define_download_flag()
# Flags that choose the networks to train.
_OF_TRAINING = (
    *("strengths", "seeds", "clips", "clip_seeds", "clipping", "fgsm_seeds"),
    *networks.FIELDS,
)


def main() -> None:
    """Trains and measures every network, writes and prints the results."""
    started = records.start()
    settings = _settings()
    chosen = _given(_RUN.value) if _RUN.value else _planned()
    settings = settings._replace(unit=networks.unit(chosen))
    run = runs.RunDirectory.for_results(_OUT.value)
    examples, train_sets = _load(chosen)
    run = cli.hold(run, own=["networks", "measured"])
    parts = cache.Parts(run.path / "measured", fresh=flags.FLAGS.fresh)
    found: list[tuple[Trained, Arrays]] = []
    text, results = "", {}
    for number, each in enumerate(chosen, start=1):
        print(f"network {number} of {len(chosen)}: {each.directory}", file=sys.stderr)
        recipe = each.row.recipe
        if _TRAIN.value:
            _train(each, train_sets[recipe])
        found.append((each, _measure(each, examples[recipe], settings, parts)))
        results = {
            "settings": settings._asdict(),
            **records.origin(started),
            **summary.summarize(found, examples, settings),
        }
        text = _write(run, results)
    # Figures are made of the file, in which infinity is text.
    drawings.write(run, json.loads((run.path / "results.json").read_text()))
    if parts.reused:
        text += f"\n{parts.reused} parts of the results were measured earlier"
    records.report(run, text, started)


def _write(run: runs.RunDirectory, results: Record) -> str:
    """Writes results and tables, and returns the tables."""
    run.write_json("results.json", results)
    text = tables.text(json.loads((run.path / "results.json").read_text()))
    run.write_text("tables.md", text)
    return text


def _settings() -> Settings:
    """The settings of the measurements; the networks decide the unit."""
    levels = options.parse_lengths("variation_levels", _VARIATION.value)
    if not levels:
        raise ValueError("variation_levels is empty; give one or more lengths.")
    options.check_positive("test_level", _TEST_LEVEL.value)
    options.check_at_least(1, _TEST_STEPS, _BOUNDARY, _BATCH)
    options.check_at_least(2, _TEST_EXAMPLES, _TRAIN_MEASURED)
    return Settings(
        unit=Config().epsilon_unit,
        level=_TEST_LEVEL.value,
        num_steps=_TEST_STEPS.value,
        variation_levels=tuple(levels),
        boundary_examples=_BOUNDARY.value,
        batch_size=_BATCH.value,
        seed=0,
    )


def _planned() -> list[Trained]:
    """The networks that the flags of the training ask for."""
    if not _TRAIN.value:
        raise ValueError("run is not given; give runs to measure, or --train.")
    return networks.planned(
        options.config_from_flags(Config),
        options.parse_floats("strengths", _STRENGTHS.value),
        options.parse_integers("seeds", _SEEDS.value),
        Path(_OUT.value) / "networks",
        bounds=options.parse_floats("clips", _CLIPS.value),
        bound_seeds=options.parse_integers("clip_seeds", _CLIP_SEEDS.value),
        fgsm_seeds=options.parse_integers("fgsm_seeds", _FGSM_SEEDS.value),
        clipping=_CLIPPING.value,
    )


def _given(directories: Sequence[str]) -> list[Trained]:
    """The networks that --run names."""
    if _TRAIN.value:
        raise ValueError("run and train are both given; give one of them.")
    for name in _OF_TRAINING:
        if flags.FLAGS[name].present and name not in _OF_GIVEN:
            raise ValueError(
                f"{name} is {flags.FLAGS[name].value}; it is of networks that are "
                "trained here, and run names trained ones."
            )
    return networks.given(directories)


def _load(
    chosen: Sequence[Trained],
) -> tuple[dict[str, Examples], dict[str, data.Dataset | data.Stream]]:
    """The examples to measure on and those to train on, by recipe."""
    examples, train_sets = {}, {}
    for each in chosen:
        recipe, config = each.row.recipe, each.config
        if recipe not in examples:
            examples[recipe], train_sets[recipe] = _load_recipe(config)
        if _TRAIN.value:
            plan = training.make_plan(config, len(train_sets[recipe]))
            training.check_devices(plan, jax.device_count(), config.accumulation_steps)
    return examples, train_sets


def _load_recipe(config: Config) -> tuple[Examples, data.Dataset | data.Stream]:
    if _RUN.value:
        name = jobs.dataset_name(None, config)
        folder = flags.FLAGS.data_dir
        config = dataclasses.replace(config, dataset=name, data_dir=folder)
    train_set, test_set = jobs.load_splits(
        config, _TEST_EXAMPLES.value, download=_DOWNLOAD.value
    )
    measured = train_set
    if not isinstance(measured, data.Dataset):
        # The middles of streamed images.
        measured = data.load(
            config.dataset,
            split="train",
            data_dir=config.data_dir,
            limit=_TRAIN_MEASURED.value,
            image_size=training.image_size(config),
            validation_fraction=config.validation_fraction,
        )
    own = measured.slice(0, _TRAIN_MEASURED.value)
    return Examples(own, test_set, len(train_set)), train_set


def _train(each: Trained, train_set: data.Dataset | data.Stream) -> None:
    """Trains a network unless it is there."""
    training.train(each.config, directory=each.directory, train_set=train_set)


def _measure(
    each: Trained, examples: Examples, settings: Settings, parts: cache.Parts
) -> Arrays:
    """Measures the network in a run directory."""
    run = training.load_run(each.directory)
    comparison.check_fit(str(each.directory), run.config, run.network, examples.test)
    return measure.measure(run.config, run.network, examples, settings, parts)


if __name__ == "__main__":
    cli.run(main)
