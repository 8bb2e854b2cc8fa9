r"""Measures robust accuracy, distances and spectrum of a trained network.

  opnorm evaluate --run=runs/snr
  opnorm evaluate --run=runs/snr --attack=auto_attack --epsilons=0.5
  opnorm evaluate --run=runs/snr --p=inf --epsilons=4/255,8/255 \
    --attack="pga num_steps=40 num_restarts=5" --attack="square num_queries=1000"
  opnorm evaluate --run=runs/snr --attack=fab   # nearest points

  opnorm evaluate --network=mine:make --variables=mine.npz \
    --dataset=cifar10_mini --p=inf --epsilons=8/255 --out=runs/mine

  opnorm evaluate --run=runs/snr --card=Linf   # as leaderboards do
  opnorm evaluate --run=runs/snr --p=inf --epsilons=8/255 \
    --attack=apgd --save_examples=runs/snr/png
  opnorm evaluate --run=runs/at --transfer=runs/snr/png

  opnorm evaluate --run=runs/snr --targets=random --attack=apgd
  opnorm evaluate --run=runs/snr --split=validation
  opnorm evaluate --run='runs/snr-seed{seed}' --seeds=0,1,2 \
    --out=runs/snr-seeds

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

--card also writes card.json and card.md. --save_examples saves the attacked images as
a .npz file or as PNG files; rounded ones stay adversarial and within the budget, and
the report names those that cannot. --transfer measures the accuracy on such a set, and
writes transfer.json and transfer.md.

With --targets attacks reach a class, and the results give how often they do. With
--scale and --mask lengths are weighted. These results are in files of their own, such
as evaluation_targeted.json. With --seeds means and errors are over networks that differ
in the seed alone.
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
    drawings,
    jobs,
    options,
    own_networks,
    records,
    seeds,
)
from experiments.common import measure as measuring
from experiments.evaluate import averages, leaving, measure, tables
from experiments.evaluate import goals as aims
from opnorm import data, linalg, reports, runs, training

_RUN = flags.DEFINE_string(
    "run",
    None,
    "run directory, or a folder of checkpoints (--run or --network is required)",
)
flags.DEFINE_alias("checkpoint", "run")
own_networks.define_flags()
seeds.define_flag()
cache.define_fresh_flag()
_OUT = flags.DEFINE_string(
    "out",
    None,
    "where to write; by default the run directory, required with --network and --seeds",
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
    "split",
    "test",
    "split to evaluate on: test, train or validation, the images that the run's "
    "training held out; or a slice of one such as test[500:1000]",
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
leaving.define_flags()
aims.define_flags()


class _Evaluated(NamedTuple):
    """A network to evaluate.

    Attributes:
      name: the run directory, or the function that made the network.
      f: the network, in inference mode.
      identity: a digest over the network and the examples.
      source: facts on the network for the results.
    """

    name: str
    f: linalg.Network
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
    chosen = leaving.Chosen(_P.value, _EPSILONS.value, _ATTACK.value)
    if flags.FLAGS.card:
        chosen = leaving.standard(chosen)
    epsilons = _read_epsilons(chosen.epsilons)
    attacks = [attack_specs.parse_attack(text) for text in chosen.attack]
    keep_points = leaving.check_save(attacks, epsilons)
    options.parse_split(_SPLIT.value)
    goals = aims.read()
    numbers = _read_seeds()
    baseline = (
        json.loads(Path(_BASELINE.value).read_text()) if _BASELINE.value else None
    )
    if _OUT.value is None and (_RUN.value is None or numbers):
        flag = "network" if _RUN.value is None else "seeds"
        raise ValueError(f"out is not given; with --{flag} it is required.")
    own = own_networks.given(numbers)
    if len(own) > 1:
        raise ValueError(f"network is {flags.FLAGS.network}; give one.")
    if flags.FLAGS.transfer:
        _transfer(own)
        return
    paths = seeds.names("run", _RUN.value, numbers) if _RUN.value else []
    loaded = [training.load_run(path) for path in paths]
    configs = [run.config for run in loaded]
    if numbers and loaded:
        comparison.check_seeds(paths, configs, numbers)
    settings = _settings(configs, attacks, epsilons, chosen.p, goals)
    settings = settings._replace(keep_points=keep_points)
    norm = measuring.norm_name(settings.p)
    if baseline is not None and norm not in baseline.get("best_known", {}):
        raise ValueError(f"baseline {_BASELINE.value} has no {norm} distances.")
    whole = _load_examples(configs)
    test_set = aims.select(goals, whole)
    networks = [
        _of_run(path, run, test_set) for path, run in zip(paths, loaded, strict=True)
    ]
    networks += [_of_own(each, test_set) for group in own for each in group]
    out = cli.hold(runs.RunDirectory.for_results(_OUT.value or str(_RUN.value)))
    parts = cache.Parts(out.path / "evaluation", fresh=flags.FLAGS.fresh)

    found = [
        measure.measure(network.f, test_set, settings, parts, network.identity)
        for network in networks
    ]
    names = [network.name for network in networks]
    left_out = len(whole) - len(test_set)
    card: records.Record = {
        **_sources(networks, numbers),
        "data": test_set.description,
        "split": _SPLIT.value,
        "examples": len(test_set),
        "norm": norm,
        "p": settings.p,
        "seed": settings.seed,
        **records.origin(),
        **aims.facts(goals, [each.aimed for each in found], left_out),
        **averages.over_networks([each.results for each in found], names),
    }
    if keep_points:
        card["saved"] = leaving.save(networks[0].f, test_set, found[0], settings)
    if baseline is not None:
        gain = measure.improvement(card, baseline, norm)
        card["improvement"] = {"baseline": _BASELINE.value, **gain}
    # Its perturbations have plain lengths.
    if _SPECTRUM.value and goals.units is None:
        pga = measuring.Pga(settings.p, 10, settings.seed, settings.batch_size)
        spectra = [
            measuring.spectrum(network.f, test_set, pga, settings.typical_epsilon)
            for network in networks
        ]
        card["spectrum"] = seeds.average(spectra)
    # For the figures.
    card["suffix"] = goals.suffix
    card["training_epsilon"] = _trained_with(configs, settings.p, goals)
    card["nearest_distances"] = [_rounded(each.nearest) for each in found]
    text = tables.text(card)
    out.write_json(f"evaluation{goals.suffix}.json", card)
    out.write_text(f"evaluation{goals.suffix}.md", text)
    drawings.write(out, card)
    if flags.FLAGS.card:
        standard = leaving.card(names[0], card, attacks[0])
        out.write_json("card.json", standard)
        out.write_text("card.md", reports.card_text(standard))
    records.report(out, text)


def _read_seeds() -> tuple[int, ...] | None:
    """Returns the seeds of --seeds; ValueError beside flags that take one network."""
    numbers = seeds.read()
    if numbers is None:
        return None
    for name in ("card", "save_examples", "transfer"):
        if flags.FLAGS[name].value:
            raise ValueError(
                f"{name} is {flags.FLAGS[name].value} and seeds is {list(numbers)}; "
                f"{name} takes one network."
            )
    return numbers


def _sources(
    networks: list[_Evaluated], numbers: tuple[int, ...] | None
) -> records.Record:
    """Returns the facts on the networks for the results."""
    if numbers is None:
        (network,) = networks
        return {"run": network.name, **network.source}
    files = flags.FLAGS.variables
    name = _RUN.value or f"{flags.FLAGS.network[0]} ({files[0]})"
    members = [{"run": network.name, **network.source} for network in networks]
    return {"run": name, "seeds": list(numbers), "networks": members}


def _transfer(own: list[list[own_networks.Own]]) -> None:
    """Measures the network on a set of attacked images that was saved, as --transfer.

    Args:
      own: the network of --network, if there is one.
    """
    saved = reports.load_examples(flags.FLAGS.transfer)
    if own:
        name, f = own[0][0].label, own[0][0].f
    else:
        name, f = str(_RUN.value), training.load_run(str(_RUN.value)).network
    found = leaving.transfer(name, f, saved, _BATCH_SIZE.value)
    out = cli.hold(runs.RunDirectory.for_results(_OUT.value or str(_RUN.value)))
    text = tables.transfer_text(found)
    out.write_json("transfer.json", found)
    out.write_text("transfer.md", text)
    records.report(out, text)


def _of_run(path: str, run: training.Run, examples: data.Dataset) -> _Evaluated:
    """Returns the network of --run, after it was compared with the examples."""
    comparison.check_fit(path, run.config, run.network, examples)
    identity = cache.fingerprint(run.config, run.network, examples)
    return _Evaluated(path, run.network, identity, {"step": run.step})


def _of_own(own: own_networks.Own, examples: data.Dataset) -> _Evaluated:
    """Returns the network of --network, after the same comparison."""
    own_networks.check(own, examples)
    identity = own_networks.fingerprint(own, examples, _BATCH_SIZE.value)
    return _Evaluated(own.label, own.f, identity, {"variables": own.variables})


def _rounded(distances: np.ndarray) -> list[float]:
    """Returns distances in rising order, with as many digits as a figure shows."""
    return [float(f"{distance:.4g}") for distance in np.sort(distances)]


def _trained_with(
    configs: list[training.Config], p: float, goals: aims.Goals
) -> float | None:
    """Returns the length of perturbations in training in these units, where known."""
    if not configs or configs[0].p != p or goals.scale is not None:
        return None
    return training.in_pixels(configs[0]).epsilon


def _read_epsilons(texts: list[str]) -> list[float]:
    """Checks the flags that need no network, and returns the epsilons above 0."""
    epsilons = sorted(set(options.parse_floats("epsilons", texts)) - {0.0})
    options.check_at_least(1, _BATCH_SIZE, _PART_SIZE)
    options.check_at_least(0, _CHECKS)
    if not epsilons or not all(0 <= e < math.inf for e in epsilons):
        raise ValueError(
            f"epsilons are {epsilons}; each must be finite and at least 0, one above."
        )
    return epsilons


def _settings(
    configs: list[training.Config],
    attacks: list[attack_specs.AttackSpec],
    epsilons: list[float],
    p: float | None,
    goals: aims.Goals,
) -> measure.Settings:
    """The settings for networks; ValueError if one is wrong."""
    p = (configs[0].p if configs else 2.0) if p is None else p
    if not p >= 1:
        raise ValueError(f"p is {p}; it must be in [1, inf].")
    trained_with = _trained_with(configs, p, goals)
    middle = epsilons[len(epsilons) // 2]
    settings = measure.Settings(
        attacks=attacks,
        p=p,
        epsilons=epsilons,
        typical_epsilon=middle if trained_with is None else trained_with,
        batch_size=_BATCH_SIZE.value,
        part_size=_PART_SIZE.value,
        check_examples=_CHECKS.value,
        seed=_SEED.value,
        goals=goals,
    )
    for spec in attacks:
        settings.attack(spec)(np.float32(epsilons[0]))
    return settings


def _load_examples(configs: list[training.Config]) -> data.Dataset:
    """Loads the examples that the flags name, by default of the runs' data set."""
    if configs:
        name = jobs.dataset_name(_DATASET.value, configs[0])
        image_size = training.image_size(configs[0], _DATASET.value)
    else:
        name = own_networks.dataset_name(_DATASET.value)
        image_size = flags.FLAGS.image_size
    split, first, last = options.parse_split(_SPLIT.value)
    test_set = data.load(
        name,
        split=split,
        validation_fraction=comparison.validation_fraction(split, configs),
        data_dir=_DATA_DIR.value,
        download=_DOWNLOAD.value,
        # The examples are drawn at random unless a slice says which.
        limit=_EXAMPLES.value if (first, last) == (None, None) else None,
        image_size=image_size,
    )
    return test_set.slice(first, last).slice(0, _EXAMPLES.value)


if __name__ == "__main__":
    cli.run(main)
