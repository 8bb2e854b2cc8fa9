r"""Measures robust accuracy, distances and spectrum of a trained network.

  python -m experiments.evaluate --run=runs/snr
  python -m experiments.evaluate --run=runs/snr --attack=auto_attack --epsilons=0.5
  python -m experiments.evaluate --run=runs/snr --p=inf --epsilons=4/255,8/255 \
    --attack="pga num_steps=40 num_restarts=5" --attack="square num_queries=1000"
  python -m experiments.evaluate --run=runs/snr --attack=fab   # nearest points

An attack with a budget runs at every epsilon; an attack without one searches for the
nearest misclassified point. The results of each part of the data are saved when the
part is finished. Started again with the same flags, an evaluation that was killed
continues from there, and the report says how many parts are from before. Each part
holds a digest over network, examples, attack and its own content, so that a part that
was damaged, or that is of another evaluation, is computed again. A digest is not a
signature: for a run directory that somebody else has written, --fresh computes
everything again.
Writes evaluation.json, evaluation.md and figures into the run directory. It also keeps,
for every example, the nearest misclassified point that any evaluation has found: a
later, stronger attack can only lower the accuracy that is reported as best known.
"""

import json
import math
from pathlib import Path

import numpy as np
from absl import flags

from experiments.common import (
    attack_specs,
    cache,
    cli,
    comparison,
    jobs,
    options,
    records,
)
from experiments.common import measure as measuring
from experiments.evaluate import figures, measure, tables
from opnorm import data, runs, training

_RUN = flags.DEFINE_string(
    "run", None, "run directory, or a folder of checkpoints (required)"
)
flags.DEFINE_alias("checkpoint", "run")
cache.define_fresh_flag()
_OUT = flags.DEFINE_string("out", None, "where to write; by default the run directory")
_DATASET = flags.DEFINE_string(
    "dataset", None, "data set to evaluate on; by default the one trained on"
)
_DATA_DIR = flags.DEFINE_string(
    "data_dir",
    None,
    "where TensorFlow Datasets keeps data; the folder that the run names is not used",
)
_DOWNLOAD = options.define_download_flag()
_SPLIT = flags.DEFINE_string(
    "split", "test", "split to evaluate on, or a slice of one such as test[500:1000]"
)
_EXAMPLES = flags.DEFINE_integer("examples", None, "how many examples; default all")
_ATTACK = flags.DEFINE_multi_string(
    "attack",
    ["pga num_steps=10"],
    "attack and its options; may be given several times. Names are those of "
    "opnorm.attacks: pga, apgd, auto_attack, square, fab, ...",
)
_P = flags.DEFINE_float("p", None, "norm of the attacks; by default the training's")
_EPSILONS = flags.DEFINE_list(
    "epsilons",
    ["0.125", "0.25", "0.5", "0.75", "1.0"],
    "lengths of the attacks' perturbations, in [0, 1] pixel units, besides 0; "
    "fractions such as 8/255 are allowed",
)
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 100, "examples per compiled call")
_PART_SIZE = flags.DEFINE_integer(
    "part_size", 500, "examples after which results are saved"
)
_SEED = flags.DEFINE_integer("seed", 0, "random seed of the attacks")
_CHECKS = flags.DEFINE_integer(
    "check_examples", 100, "examples for the sanity checks; 0 for no checks"
)
_SPECTRUM = flags.DEFINE_boolean(
    "spectrum", True, "measure Jacobian norms and the alignment of perturbations too"
)
_BASELINE = flags.DEFINE_string(
    "baseline", None, "evaluation.json of a network to compute the improvement over"
)


def main() -> None:
    """Evaluates, writes results, prints the table."""
    if not _RUN.value:
        raise ValueError("run is not given; it is the run directory to evaluate.")
    epsilons = _read_epsilons()
    attacks = [attack_specs.parse_attack(text) for text in _ATTACK.value]
    options.parse_split(_SPLIT.value)
    baseline = (
        json.loads(Path(_BASELINE.value).read_text()) if _BASELINE.value else None
    )
    run = training.load_run(_RUN.value)
    settings = _settings(run.config, attacks, epsilons)
    norm = measuring.norm_name(settings.p)
    if baseline is not None and norm not in baseline.get("best_known", {}):
        raise ValueError(f"baseline {_BASELINE.value} has no {norm} distances.")
    test_set = _load_examples(run.config)
    comparison.check_fit(_RUN.value, run.config, run.network, test_set)
    identity = cache.fingerprint(run.config, run.network, test_set)
    out = cli.hold(runs.RunDirectory.for_results(_OUT.value or _RUN.value))
    parts = cache.Parts(out.path / "evaluation", fresh=flags.FLAGS.fresh)

    found, nearest = measure.measure(run.network, test_set, settings, parts, identity)
    card: records.Record = {
        "run": _RUN.value,
        "step": run.step,
        "data": test_set.description,
        "split": _SPLIT.value,
        "examples": len(test_set),
        "norm": norm,
        "p": settings.p,
        "seed": settings.seed,
        **records.origin(),
        **found,
    }
    if baseline is not None:
        gain = measure.improvement(card, baseline, norm)
        card["improvement"] = {"baseline": _BASELINE.value, **gain}
    if _SPECTRUM.value:
        pga = measuring.Pga(settings.p, 10, settings.seed, settings.batch_size)
        card["spectrum"] = measuring.spectrum(
            run.network, test_set, pga, settings.typical_epsilon
        )
    text = tables.text(card)
    out.write_json("evaluation.json", card)
    out.write_text("evaluation.md", text)
    trained_with = None
    if run.config.p == settings.p:
        trained_with = training.in_pixels(run.config).epsilon
    figures.draw(out, card, nearest, trained_with)
    records.report(out, text)


def _read_epsilons() -> list[float]:
    """Checks the flags that need no network, and returns the epsilons above 0."""
    epsilons = sorted(set(options.parse_floats("epsilons", _EPSILONS.value)) - {0.0})
    options.check_at_least(1, _BATCH_SIZE, _PART_SIZE)
    options.check_at_least(0, _CHECKS)
    if not epsilons or not all(0 <= e < math.inf for e in epsilons):
        raise ValueError(
            f"epsilons are {epsilons}; each must be finite and at least 0, one above."
        )
    return epsilons


def _settings(
    config: training.Config,
    attacks: list[attack_specs.AttackSpec],
    epsilons: list[float],
) -> measure.Settings:
    """The settings for a network of this configuration; ValueError if one is wrong."""
    p = config.p if _P.value is None else _P.value
    if not p >= 1:
        raise ValueError(f"p is {p}; it must be in [1, inf].")
    for spec in attacks:
        attack_specs.factory(spec, p)(np.float32(epsilons[0]))
    middle = epsilons[len(epsilons) // 2]
    return measure.Settings(
        attacks=attacks,
        p=p,
        epsilons=epsilons,
        typical_epsilon=training.in_pixels(config).epsilon if config.p == p else middle,
        batch_size=_BATCH_SIZE.value,
        part_size=_PART_SIZE.value,
        check_examples=_CHECKS.value,
        seed=_SEED.value,
    )


def _load_examples(config: training.Config) -> data.Dataset:
    split, first, last = options.parse_split(_SPLIT.value)
    test_set = data.load(
        jobs.dataset_name(_DATASET.value, config),
        split=split,
        data_dir=_DATA_DIR.value,
        download=_DOWNLOAD.value,
        # The examples are drawn at random unless a slice says which.
        limit=_EXAMPLES.value if (first, last) == (None, None) else None,
        image_size=training.image_size(config, _DATASET.value),
    )
    return test_set.slice(first, last).slice(0, _EXAMPLES.value)


if __name__ == "__main__":
    cli.run(main)
