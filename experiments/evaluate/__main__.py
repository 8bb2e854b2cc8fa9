r"""Measures robust accuracy, distances and spectrum of a trained network.

  python -m experiments.evaluate --run=runs/snr
  python -m experiments.evaluate --run=runs/snr --attack=auto_attack --epsilons=0.5
  python -m experiments.evaluate --run=runs/snr --p=inf --epsilons=4/255,8/255 \
    --attack="pga num_steps=40 num_restarts=5" --attack="square num_queries=1000"
  python -m experiments.evaluate --run=runs/snr --attack=fab   # nearest points

  python -m experiments.evaluate --network=mine:make --variables=mine.npz \
    --dataset=cifar10_mini --p=inf --epsilons=8/255 --out=runs/mine

A network of your own is a function of a module, which returns a function of a batch,
best a callable pytree. --dataset, --out and --image_size stand for the facts that a run
knows; --p is 2 unless it is given.

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
from typing import NamedTuple

import numpy as np
from absl import flags

from experiments.common import (
    attack_specs,
    cache,
    cli,
    comparison,
    jobs,
    options,
    own_networks,
    records,
)
from experiments.common import measure as measuring
from experiments.evaluate import figures, measure, tables
from opnorm import data, linalg, runs, training

_RUN = flags.DEFINE_string(
    "run",
    None,
    "run directory, or a folder of checkpoints (--run or --network is required)",
)
flags.DEFINE_alias("checkpoint", "run")
own_networks.define_flags()
cache.define_fresh_flag()
_OUT = flags.DEFINE_string(
    "out",
    None,
    "where to write; by default the run directory, required with --network",
)
_DATASET = flags.DEFINE_string(
    "dataset",
    None,
    "data set to evaluate on; by default the one trained on, required with --network",
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
    "name of an attack, with its options behind it; may be given several times",
)
_P = options.define_number(
    "p", None, "norm of the attacks; by default the training's, 2 with --network"
)
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


class _Evaluated(NamedTuple):
    """A network to evaluate, with its examples.

    Attributes:
      name: the run directory, or the function that made the network.
      config: the configuration of its training; None for a network of the user's own.
      f: the network, in inference mode.
      examples: the examples.
      identity: a digest over the network and the examples.
      source: facts on the network for the results.
    """

    name: str
    config: training.Config | None
    f: linalg.Network
    examples: data.Dataset
    identity: str
    source: records.Record


def main() -> None:
    """Evaluates, writes results, prints the table."""
    if bool(_RUN.value) == bool(flags.FLAGS.network):
        given = "is not given" if not _RUN.value else "and network are both given"
        raise ValueError(
            f"run {given}; give the run directory to evaluate, or --network with a "
            "network of your own."
        )
    epsilons = _read_epsilons()
    attacks = [attack_specs.parse_attack(text) for text in _ATTACK.value]
    options.parse_split(_SPLIT.value)
    baseline = (
        json.loads(Path(_BASELINE.value).read_text()) if _BASELINE.value else None
    )
    if _RUN.value is None and _OUT.value is None:
        raise ValueError("out is not given; with --network it is required.")
    own = own_networks.given()
    if len(own) > 1:
        raise ValueError(f"network is {flags.FLAGS.network}; give one.")
    run = training.load_run(_RUN.value) if _RUN.value else None
    settings = _settings(run.config if run else None, attacks, epsilons)
    norm = measuring.norm_name(settings.p)
    if baseline is not None and norm not in baseline.get("best_known", {}):
        raise ValueError(f"baseline {_BASELINE.value} has no {norm} distances.")
    network = _of_run(str(_RUN.value), run) if run else _of_own(own[0][0])
    test_set = network.examples
    out = cli.hold(runs.RunDirectory.for_results(_OUT.value or str(_RUN.value)))
    parts = cache.Parts(out.path / "evaluation", fresh=flags.FLAGS.fresh)

    found, nearest = measure.measure(
        network.f, test_set, settings, parts, network.identity
    )
    card: records.Record = {
        "run": network.name,
        **network.source,
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
            network.f, test_set, pga, settings.typical_epsilon
        )
    text = tables.text(card)
    out.write_json("evaluation.json", card)
    out.write_text("evaluation.md", text)
    figures.draw(out, card, nearest, _trained_with(network.config, settings.p))
    records.report(out, text)


def _of_run(path: str, run: training.Run) -> _Evaluated:
    """Returns the network of --run, with examples that fit it."""
    examples = _load_examples(
        jobs.dataset_name(_DATASET.value, run.config),
        training.image_size(run.config, _DATASET.value),
    )
    comparison.check_fit(path, run.config, run.network, examples)
    identity = cache.fingerprint(run.config, run.network, examples)
    source = {"step": run.step}
    return _Evaluated(path, run.config, run.network, examples, identity, source)


def _of_own(own: own_networks.Own) -> _Evaluated:
    """Returns the network of --network, with examples that fit it."""
    name = own_networks.dataset_name(_DATASET.value)
    examples = _load_examples(name, flags.FLAGS.image_size)
    own_networks.check(own, examples)
    identity = own_networks.fingerprint(own, examples, _BATCH_SIZE.value)
    source = {"variables": own.variables}
    return _Evaluated(own.label, None, own.f, examples, identity, source)


def _trained_with(config: training.Config | None, p: float) -> float | None:
    """Returns the length of perturbations in training in the norm p, where known."""
    if config is None or config.p != p:
        return None
    return training.in_pixels(config).epsilon


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
    config: training.Config | None,
    attacks: list[attack_specs.AttackSpec],
    epsilons: list[float],
) -> measure.Settings:
    """The settings for a network; ValueError if one is wrong."""
    p = (config.p if config else 2.0) if _P.value is None else _P.value
    if not p >= 1:
        raise ValueError(f"p is {p}; it must be in [1, inf].")
    for spec in attacks:
        attack_specs.factory(spec, p)(np.float32(epsilons[0]))
    trained_with = _trained_with(config, p)
    middle = epsilons[len(epsilons) // 2]
    return measure.Settings(
        attacks=attacks,
        p=p,
        epsilons=epsilons,
        typical_epsilon=middle if trained_with is None else trained_with,
        batch_size=_BATCH_SIZE.value,
        part_size=_PART_SIZE.value,
        check_examples=_CHECKS.value,
        seed=_SEED.value,
    )


def _load_examples(name: str, image_size: int | None) -> data.Dataset:
    split, first, last = options.parse_split(_SPLIT.value)
    test_set = data.load(
        name,
        split=split,
        data_dir=_DATA_DIR.value,
        download=_DOWNLOAD.value,
        # The examples are drawn at random unless a slice says which.
        limit=_EXAMPLES.value if (first, last) == (None, None) else None,
        image_size=image_size,
    )
    return test_set.slice(first, last).slice(0, _EXAMPLES.value)


if __name__ == "__main__":
    cli.run(main)
