r"""Tests the claim of Finlay & Oberman 2019: a penalty on the gradient of the loss in
the input moves the nearest adversarial examples away, for little clean error.

  opnorm gradient_regularization
  opnorm gradient_regularization --p=inf
  opnorm gradient_regularization --run=runs/a --run=runs/b --out=runs/c

Trains one network for each of --rows and --seeds, the same for all but the method, or
takes trained ones (--run; those that differ only in seed are one row). A row is
undefended, adversarial or gradient_<lambda>; an ending _L2 or _Linf is the norm it is
trained against, by default --p, and _smooth makes its activation smooth. Adversarial
training uses perturbed images only; the penalty is lambda times half the squared 2-norm
of the gradient, and against Linf the squared 1-norm over the number of pixels.

Measures, in the norm --p and all on the same --examples images: the clean error; the
distance of the nearest adversarial example that any of several attacks finds (PGA over
many budgets, Carlini-Wagner in L2, Boundary, LogBarrier) and the error within some
distances; the least distance that slope and curvature of the loss promise, and how
often an attack came nearer, since the promise rests on maxima over --test_examples
images; the improvement ratio over the undefended network with ReLU.

Networks are kept in networks/ of --out, results in L2/ or Linf/: results.json,
tables.md and figures. After an interruption it goes on where it ended. With

  opnorm gradient_regularization --summarize=DIRECTORY

nothing is trained or measured: errors, distances, bounds and ratios are computed again
from the values by image in DIRECTORY/results.json, and the files are written anew.
"""

import dataclasses
import json
import math
import sys
import time
from pathlib import Path

import jax
from absl import flags

from experiments.common import (
    attack_specs,
    cache,
    cli,
    comparison,
    drawings,
    jobs,
    options,
    records,
)
from experiments.common.measure import norm_name
from experiments.common.records import Record
from experiments.gradient_regularization import (
    measure,
    networks,
    paper,
    summary,
    tables,
)
from opnorm import data, runs, training

_ATTACKS = {
    2.0: (
        "pga num_steps=20",
        "carlini_wagner num_steps=100 num_searches=6 initial_constant=0.01",
        "boundary num_steps=500",
        "log_barrier num_outer=10 num_inner=20",
    ),
    math.inf: (
        "pga num_steps=20",
        "boundary num_steps=500",
        "log_barrier num_outer=10 num_inner=20",
    ),
}
_EPSILONS = {2.0: (0.25, 0.5), math.inf: (2 / 255, 8 / 255)}
_LARGEST = {2.0: 8.0, math.inf: 0.5}

options.define_config_flags(
    training.Config,
    only=networks.FIELDS,
    epochs=4,
    batch_size=32,
    learning_rate=0.01,
    augment=False,
    num_steps=7,
    epsilon=None,
    random_start=False,
)
options.define_preset_flags()
_OUT = flags.DEFINE_string(
    "out", "runs/gradient_regularization", "directory to write to"
)
_RUN = flags.DEFINE_multi_string(
    "run", None, "run of a trained network to measure; nothing is trained then"
)
_ROWS = flags.DEFINE_list(
    "rows", None, "rows to train; by default the rows of the paper's table"
)
_SEEDS = flags.DEFINE_list("seeds", ["0"], "seeds; each row has a network for each")
_TEST_EXAMPLES = flags.DEFINE_integer(
    "test_examples",
    400,
    "number of test images at which slopes and curvatures are measured",
)
_EXAMPLES = flags.DEFINE_integer(
    "examples",
    100,
    "number of them that are attacked: errors, distances and bounds are of these",
)
_TOP_K = flags.DEFINE_integer(
    "top_k",
    None,
    "an image is correct if its label is among as many of the largest logits; by "
    "default 5 from 100 classes on, else 1",
)
_ATTACK = flags.DEFINE_multi_string(
    "attack",
    None,
    "attack and its options, as for experiments.evaluate; may be given several times. "
    "By default " + "; ".join(_ATTACKS[2.0]),
)
_EPSILONS_FLAG = flags.DEFINE_list(
    "epsilons",
    None,
    "distances within which the error is reported, in [0, 1] pixel units; by default "
    "0.25,0.5 (L2) or 2/255 and 8/255 (Linf)",
)
_LARGEST_FLAG = options.define_number(
    "largest_budget", None, "largest budget of an attack; by default 8 (L2), 0.5 (Linf)"
)
_HALVINGS = flags.DEFINE_integer(
    "halvings", 7, "halvings of an attack's budget towards the nearest point"
)
_LANCZOS = flags.DEFINE_integer(
    "lanczos_steps", 20, "products with the Hessian at each image"
)
_BATCH = flags.DEFINE_integer("test_batch_size", 100, "images per compiled call")
_PART = flags.DEFINE_integer(
    "part_size", 500, "attacked images after which results are saved"
)
_SUMMARIZE = flags.DEFINE_string(
    "summarize", None, "directory of results to sum up again, without measuring"
)
cache.define_fresh_flag()
_DOWNLOAD = options.define_download_flag()
# Flags that --summarize refuses, besides those of training.
_OF_MEASUREMENTS = (
    *("out", "run", "rows", "seeds", "preset", "test_examples", "examples", "top_k"),
    *("attack", "epsilons", "largest_budget", "halvings", "lanczos_steps"),
    *("test_batch_size", "part_size", "fresh", "download"),
)


def main() -> None:
    """Trains and measures every network, writes and prints the results."""
    if _SUMMARIZE.value is not None:
        _summarize_again(Path(_SUMMARIZE.value))
        return
    started = records.start()
    settings = _settings()
    options.check_at_least(2, _EXAMPLES, _TEST_EXAMPLES)
    chosen = networks.given(_RUN.value) if _RUN.value else _planned(settings.p)
    config = chosen[0].config
    test_set = _test_images(config)
    train_set = None if _RUN.value else _load_train_set(config, test_set)
    runs.RunDirectory.for_results(_OUT.value)
    settings = settings._replace(top_k=_top_k(test_set.num_classes))
    attacked = min(_EXAMPLES.value, len(test_set))
    conditions = {
        **settings._asdict(),
        "attacks": [str(spec) for spec in settings.attacks],
        "test_examples": len(test_set),
        "examples": attacked,
    }
    run = jobs.create_run_directory(
        Path(_OUT.value) / norm_name(settings.p),
        {**conditions, "runs": _RUN.value},
        [each.config for each in chosen],
    )
    cli.hold(run)
    parts = cache.Parts(run.path / "measured", fresh=flags.FLAGS.fresh)
    rows: dict[str, Record] = {}
    for number, each in enumerate(chosen, start=1):
        name = f"network {number} of {len(chosen)}: {each.directory}"
        print(name, file=sys.stderr)
        if train_set is not None:
            _train(each, train_set)
        row = rows.setdefault(
            each.row.name(settings.p),
            {
                "label": each.row.label(settings.p),
                "kind": each.row.kind,
                "weight": each.row.weight,
                "smooth": each.row.smooth,
                "seeds": [],
            },
        )
        row["seeds"].append(_measure(each, test_set, attacked, settings, parts))
    norm = norm_name(settings.p)
    results = {
        "data": test_set.description,
        "norm": norm,
        **conditions,
        **records.origin(started),
        "networks": summary.of_rows(rows, settings.largest),
        "reused_pieces": parts.reused,
        "paper": paper.printed(test_set, norm),
    }
    text = _write(run, results)
    if parts.reused:
        text += f"\n{parts.reused} parts of the results were measured earlier"
    records.report(run, text, started)


def _summarize_again(directory: Path) -> None:
    """Sums up the values by image of a results.json, and writes the files anew."""
    for name in (*_OF_MEASUREMENTS, *networks.FIELDS):
        if flags.FLAGS[name].present:
            raise ValueError(
                f"{name} is {flags.FLAGS[name].value}; it is of a measurement, and "
                "summarize measures nothing."
            )
    results = _read_results(directory)
    epsilons, largest = results["epsilons"], results["largest"]
    for row in results["networks"].values():
        row["seeds"] = [
            summary.of_images(one, epsilons, largest) for one in row["seeds"]
        ]
    results["networks"] = summary.of_rows(results["networks"], largest)
    results["summary_revision"] = runs.git_revision()
    run = runs.RunDirectory(directory)
    cli.hold(run)
    records.report(run, _write(run, results))


def _read_results(directory: Path) -> Record:
    file = directory / "results.json"
    try:
        results: Record = json.loads(file.read_text())
        for name in ("epsilons", "largest", "paper", "networks"):
            if name not in results:
                raise ValueError(f"it has no {name!r}")
        for row in results["networks"].values():
            for one in row["seeds"]:
                _ = one["distances"], one["bounds"]
    except FileNotFoundError:
        raise ValueError(
            f"summarize is {directory}; it has no results.json of this binary."
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"summarize is {directory}; its results.json is not of this binary: "
            f"{error}."
        ) from error
    return results


def _write(run: runs.RunDirectory, results: Record) -> str:
    """Writes all files, and returns the tables."""
    run.write_json("results.json", results)
    text = tables.text(results)
    run.write_text("tables.md", text)
    drawings.write(run, results)
    return text


def _settings() -> measure.Settings:
    """The settings of the measurements, without those that depend on the data."""
    p = flags.FLAGS.p
    if p not in _ATTACKS:
        raise ValueError(f"p is {p:g}; it may be 2 or inf here.")
    options.check_at_least(1, _LANCZOS, _BATCH, _PART)
    options.check_at_least(0, _HALVINGS)
    epsilons: tuple[float, ...] = _EPSILONS[p]
    if _EPSILONS_FLAG.value is not None:
        epsilons = options.parse_floats("epsilons", _EPSILONS_FLAG.value)
    largest = _LARGEST_FLAG.value
    settings = measure.Settings(
        p=p,
        attacks=tuple(
            attack_specs.parse_attack(text) for text in _ATTACK.value or _ATTACKS[p]
        ),
        epsilons=epsilons,
        largest=_LARGEST[p] if largest is None else largest,
        halvings=_HALVINGS.value,
        top_k=1,
        lanczos_steps=_LANCZOS.value,
        batch_size=_BATCH.value,
        part_size=_PART.value,
        seed=0,
    )
    measure.check(settings)
    return settings


def _top_k(num_classes: int) -> int:
    given = _TOP_K.value
    top_k = (5 if num_classes >= 100 else 1) if given is None else given
    if not 1 <= top_k < num_classes:
        raise ValueError(
            f"top_k is {top_k}; it must be from 1 to {num_classes - 1} here."
        )
    return top_k


def _planned(p: float) -> list[networks.Trained]:
    """The networks that --rows and --seeds ask for."""
    names = networks.DEFAULT[p] if _ROWS.value is None else _ROWS.value
    seeds = options.parse_integers("seeds", _SEEDS.value)
    return networks.planned(names, seeds, p, Path(_OUT.value) / "networks")


def _test_images(config: training.Config) -> data.Dataset:
    given = flags.FLAGS
    if _RUN.value:
        chosen = given.dataset if given["dataset"].present else None
        name = jobs.dataset_name(chosen, config)
        config = dataclasses.replace(config, dataset=name)
    return data.load(
        config.dataset,
        split="test",
        data_dir=given.data_dir,
        download=_DOWNLOAD.value,
        limit=_TEST_EXAMPLES.value,
        image_size=training.image_size(config),
    )


def _load_train_set(
    config: training.Config, test_set: data.Dataset
) -> data.Dataset | data.Stream:
    """The training set, which fits the test images, the batches and the devices."""
    train_set = training.load_train_set(config, download=_DOWNLOAD.value)
    data.check_splits(train_set, test_set)
    plan = training.make_plan(config, len(train_set))
    training.check_devices(plan, jax.device_count(), config.accumulation_steps)
    return train_set


def _train(each: networks.Trained, train_set: data.Dataset | data.Stream) -> None:
    """Trains a network unless it is there, and notes the time."""
    if (each.directory / "training.json").exists():
        return
    resumed, began = each.directory.exists(), time.monotonic()
    training.train(each.config, directory=each.directory, train_set=train_set)
    seconds = None if resumed else time.monotonic() - began
    runs.RunDirectory(each.directory).write_json("training.json", {"seconds": seconds})


def _measure(
    each: networks.Trained,
    test_set: data.Dataset,
    attacked: int,
    settings: measure.Settings,
    parts: cache.Parts,
) -> Record:
    run = training.load_run(each.directory)
    comparison.check_fit(str(each.directory), run.config, run.network, test_set)
    found = measure.measure(
        run.network,
        test_set,
        attacked,
        settings,
        smooth=each.row.smooth,
        identity=cache.fingerprint(run.config, run.network, test_set),
        parts=parts,
        description=f"{each.directory.name}: attacks",
    )
    timed = each.directory / "training.json"
    seconds = json.loads(timed.read_text())["seconds"] if timed.exists() else None
    return {
        "run": str(each.directory),
        "seed": run.config.seed,
        "step": run.step,
        "training_seconds": seconds,
        **summary.card(found, settings),
    }


if __name__ == "__main__":
    cli.run(main)
