r"""Tests the claim of Finlay & Oberman 2019: penalising the gradient of the loss in the
input moves the nearest adversarial examples away, for little clean error.

  python -m experiments.gradient_regularization
  python -m experiments.gradient_regularization --p=inf
  python -m experiments.gradient_regularization --run=runs/a --run=runs/b --out=runs/c

Trains one network for each of --rows and --seeds, the same for all but the method, or
takes trained ones (--run; those that differ only in seed are one row). A row is
undefended, adversarial or gradient_<lambda>; an ending _L2 or _Linf says which norm it
is trained against, by default --p, and _smooth that its activation is smooth.
Adversarial training sees perturbed pictures only; the penalty is lambda times half the
squared 2-norm of the gradient, against Linf the squared 1-norm over the number of
pixels.

Measures, in the norm --p and all on the same --examples images: the clean error; how
far the nearest adversarial example is that any of several attacks finds (PGA over many
budgets, Carlini-Wagner in L2, Boundary, LogBarrier; see
gradient_regularization_measure.py) and the error within some distances; what slope and
curvature of the loss promise to be the least distance, and how often an attack came
nearer than that, since the promise rests on maxima over --test_examples images; the
improvement ratio over the undefended network with ReLU.

Networks are kept in networks/ of --out, results in L2/ or Linf/: results.json,
tables.md and figures. Interrupted, it goes on where it ended. With

  python -m experiments.gradient_regularization --summarize=DIRECTORY

nothing is trained or measured: errors, distances, bounds and ratios are computed again
from the values by image in DIRECTORY/results.json, and the files are written anew.
"""

import dataclasses
import json
import math
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags

from experiments.common import (
    attack_specs,
    cache,
    cli,
    comparison,
    jobs,
    measure,
    options,
)
from experiments.gradient_regularization import attacks, figures, paper, tables
from experiments.gradient_regularization import measure as measuring
from experiments.gradient_regularization import networks as rows
from experiments.gradient_regularization.attacks import Settings
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
    only=rows.FIELDS,
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
    "run", None, "trained networks to measure instead of training some"
)
_ROWS = flags.DEFINE_list(
    "rows", None, "what to train; by default the rows of the paper's table"
)
_SEEDS = flags.DEFINE_list("seeds", ["0"], "seeds, one network per row each")
_TEST_EXAMPLES = flags.DEFINE_integer(
    "test_examples", 400, "test images that slopes and curvatures are measured at"
)
_EXAMPLES = flags.DEFINE_integer(
    "examples",
    100,
    "how many of them are attacked: errors, distances and bounds are of these",
)
_TOP_K = flags.DEFINE_integer(
    "top_k",
    None,
    "a picture is right if its label is among so many of the likeliest; by default 5 "
    "from 100 classes on, else 1",
)
_ATTACK = flags.DEFINE_multi_string(
    "attack",
    None,
    "attack and its options, as for experiments.evaluate; several times for several. "
    "By default " + "; ".join(_ATTACKS[2.0]),
)
_EPSILONS_FLAG = flags.DEFINE_list(
    "epsilons",
    None,
    "distances to report the error within, in [0, 1] pixel units; by default "
    "0.25,0.5 (L2) or 2/255 and 8/255 (Linf)",
)
_LARGEST_FLAG = flags.DEFINE_float(
    "largest_budget", None, "largest budget of an attack; by default 8 (L2), 0.5 (Linf)"
)
_HALVINGS = flags.DEFINE_integer(
    "halvings", 7, "halvings of an attack's budget towards the nearest point"
)
_LANCZOS = flags.DEFINE_integer(
    "lanczos_steps", 20, "products with the Hessian at each picture"
)
_BATCH = flags.DEFINE_integer("test_batch_size", 100, "pictures per compiled call")
_PART = flags.DEFINE_integer(
    "part_size", 500, "attacked pictures after which results are saved"
)
_SUMMARIZE = flags.DEFINE_string(
    "summarize", None, "directory of results to sum up again, without measuring"
)
cache.define_fresh_flag()
_DOWNLOAD = flags.DEFINE_boolean("download", False, "download the data if missing")
# Flags that --summarize has no use for, beside those of training.
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
    began, revision = time.monotonic(), runs.git_revision()
    settings = _settings()
    for flag in (_EXAMPLES, _TEST_EXAMPLES):
        if flag.value < 2:
            raise ValueError(f"{flag.name} is {flag.value}; it must be at least 2.")
    chosen = rows.given(_RUN.value) if _RUN.value else _planned(settings.p)
    config = chosen[0].config
    pictures = _test_pictures(config)
    train_set = None
    if not _RUN.value:
        train_set = training.load_train_set(config, download=_DOWNLOAD.value)
        data.check_splits(train_set, pictures)
        plan = training.make_plan(config, len(train_set))
        training.check_devices(plan, jax.device_count(), config.accumulation_steps)
    runs.RunDirectory.for_results(_OUT.value)
    settings = settings._replace(top_k=_top_k(pictures.num_classes))
    attacked = min(_EXAMPLES.value, len(pictures))
    run = jobs.create_run_directory(
        Path(_OUT.value) / measure.norm_name(settings.p),
        {
            **settings._asdict(),
            "attacks": [str(spec) for spec in settings.attacks],
            "test_examples": len(pictures),
            "examples": attacked,
            "runs": _RUN.value,
        },
        [each.config for each in chosen],
    )
    cli.hold(run)
    parts = cache.Parts(run.path / "measured", fresh=flags.FLAGS.fresh)
    found: dict[str, dict[str, Any]] = {}
    for number, each in enumerate(chosen, start=1):
        name = f"network {number} of {len(chosen)}: {each.directory}"
        print(name, file=sys.stderr)
        if train_set is not None:
            _train(each, train_set)
        row = found.setdefault(
            each.row.name(settings.p),
            {
                "label": each.row.label(settings.p),
                "kind": each.row.kind,
                "weight": each.row.weight,
                "smooth": each.row.smooth,
                "seeds": [],
            },
        )
        row["seeds"].append(_measure(each, pictures, attacked, settings, parts))
    results = {
        "data": pictures.description,
        "norm": measure.norm_name(settings.p),
        **settings._asdict(),
        "attacks": [str(spec) for spec in settings.attacks],
        "test_examples": len(pictures),
        "examples": attacked,
        "environment": runs.environment(),
        "git_revision": revision,
        "networks": _summarize(found, settings.largest),
        "reused_pieces": parts.reused,
        "seconds": time.monotonic() - began,
    }
    printed = paper.table_for(pictures, results["norm"])
    results["paper"] = printed._asdict() if printed else None
    _write(run, results, printed)
    if parts.reused:
        print(f"{parts.reused} pieces of the results were measured earlier")
    print(f"written to {run.path} in {time.monotonic() - began:.0f} s")


def _summarize_again(directory: Path) -> None:
    """Sums up the values by image of a results.json, and writes the files anew."""
    for name in (*_OF_MEASUREMENTS, *rows.FIELDS):
        if flags.FLAGS[name].present:
            raise ValueError(
                f"{name} is {flags.FLAGS[name].value}; it is of a measurement, and "
                "summarize measures nothing."
            )
    results = _read_results(directory)
    epsilons, largest = results["epsilons"], results["largest"]
    for network in results["networks"].values():
        network["seeds"] = [
            measuring.of_images(one, epsilons, largest) for one in network["seeds"]
        ]
    results["networks"] = _summarize(results["networks"], largest)
    results["summary_revision"] = runs.git_revision()
    printed = results["paper"]
    if printed is not None:
        lines = tuple(paper.Row(*row) for row in printed["rows"])
        printed = paper.Table(printed["setting"], lines, tuple(printed["epsilons"]))
    run = runs.RunDirectory(directory)
    cli.hold(run)
    _write(run, results, printed)
    print(f"written to {directory}")


def _read_results(directory: Path) -> dict[str, Any]:
    file = directory / "results.json"
    try:
        results = json.loads(file.read_text())
        for name in ("epsilons", "largest", "paper", "networks"):
            if name not in results:
                raise ValueError(f"it has no {name!r}")
        for network in results["networks"].values():
            for one in network["seeds"]:
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


def _write(
    run: runs.RunDirectory,
    results: dict[str, Any],
    printed: paper.Table | None,
) -> None:
    run.write_json("results.json", results)
    text = tables.text(results, printed)
    run.write_text("tables.md", text)
    figures.draw_errors(run, results)
    figures.draw_bounds(run, results)
    print(text)


def _settings() -> Settings:
    """How networks are measured, but for what depends on the data."""
    p = flags.FLAGS.p
    if p not in _ATTACKS:
        raise ValueError(f"p is {p:g}; it may be 2 or inf here.")
    epsilons = tuple(_EPSILONS[p])
    if _EPSILONS_FLAG.value is not None:
        epsilons = options.parse_floats("epsilons", _EPSILONS_FLAG.value)
    largest = _LARGEST_FLAG.value
    settings = Settings(
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
    attacks.check(settings)
    return settings


def _top_k(num_classes: int) -> int:
    given = _TOP_K.value
    top_k = (5 if num_classes >= 100 else 1) if given is None else given
    if not 1 <= top_k < num_classes:
        raise ValueError(
            f"top_k is {top_k}; it must be from 1 to {num_classes - 1} here."
        )
    return top_k


def _planned(p: float) -> list[rows.Trained]:
    """The networks that --rows and --seeds ask for."""
    names = rows.DEFAULT[p] if _ROWS.value is None else _ROWS.value
    seeds = options.parse_integers("seeds", _SEEDS.value)
    return rows.planned(names, seeds, p, Path(_OUT.value) / "networks")


def _test_pictures(config: training.Config) -> data.Dataset:
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


def _train(each: rows.Trained, train_set: data.Dataset | data.Stream) -> None:
    """Trains a network unless it is there, and notes the time."""
    if (each.directory / "training.json").exists():
        return
    resumed, began = each.directory.exists(), time.monotonic()
    training.train(each.config, directory=each.directory, train_set=train_set)
    seconds = None if resumed else time.monotonic() - began
    runs.RunDirectory(each.directory).write_json("training.json", {"seconds": seconds})


def _measure(
    each: rows.Trained,
    pictures: data.Dataset,
    attacked: int,
    settings: Settings,
    parts: cache.Parts,
) -> dict[str, Any]:
    run = training.load_run(each.directory)
    comparison.check_fit(str(each.directory), run.config, run.network, pictures)
    found = measuring.measure(
        run.network,
        pictures,
        attacked,
        settings,
        smooth=each.row.smooth,
        identity=cache.fingerprint(run.config, run.network, pictures),
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
        **measuring.summary(found, settings),
    }


def _summarize(
    networks: dict[str, dict[str, Any]], largest: float
) -> dict[str, dict[str, Any]]:
    """Adds to each row the mean and the spread of its networks, and what was won."""
    undefended = networks.get(paper.UNDEFENDED)
    before = undefended["seeds"] if undefended else []
    summaries = {}
    for name, row in networks.items():
        measured = row["seeds"]
        mean = _combined(measured, np.mean)
        spread, ratio, error = None, None, None
        if len(measured) > 1:
            spread = _combined(measured, lambda values: np.std(values, ddof=1))
        if before:
            ratio = _ratio(mean, _combined(before, np.mean))
        if ratio is not None:
            error = measuring.ratio_error(
                _distances(measured), _distances(before), largest
            )
        summaries[name] = {
            **row,
            "mean": mean,
            "spread": spread,
            "ratio": ratio,
            "ratio_error": error,
            "ratios": [
                _ratio(one, other)
                for one in measured
                for other in before
                if one["seed"] == other["seed"]
            ],
            "seeds": measured,
        }
    return summaries


def _distances(measured: list[dict[str, Any]]) -> np.ndarray:
    return np.array([one["distances"] for one in measured], np.float64)


def _ratio(one: dict[str, Any], other: dict[str, Any]) -> float | None:
    return measuring.improvement_ratio(
        *(each[name] for each in (one, other) for name in ("distance", "clean_error"))
    )


def _combined(measured: list[dict[str, Any]], combine: Any) -> dict[str, Any]:
    """The numbers of several networks as one, part by part."""
    combined: dict[str, Any] = {}
    for name, value in measured[0].items():
        values = [each[name] for each in measured]
        if isinstance(value, dict):
            combined[name] = _combined(values, combine)
        elif all(isinstance(v, float) for v in values):
            combined[name] = float(combine(values))
    return combined


if __name__ == "__main__":
    cli.run(main)
