r"""Evaluates a trained network: robust accuracy, distances, sanity checks, spectrum.

  python -m experiments.evaluate --run=runs/snr
  python -m experiments.evaluate --run=runs/snr --attack=auto_attack --epsilons=0.5
  python -m experiments.evaluate --run=runs/snr --p=inf --epsilons=4/255,8/255 \
    --attack="pga num_steps=40 num_restarts=5" --attack="square num_queries=1000"
  python -m experiments.evaluate --run=runs/snr --attack=fab   # nearest points

An attack with a budget is run at every epsilon; one without looks for the nearest
misclassified point. Results of each piece of the data are saved when it is finished:
started again with the same flags, an evaluation that was killed goes on from there, and
the report says how many pieces are from before. Each piece holds a digest over network,
examples, attack and its own content, so that a piece that was damaged, or belongs to
another evaluation, is computed again. A digest is no signature: give --fresh, which
computes everything again, for a run directory that somebody else has written.
Writes evaluation.json, evaluation.md and figures into the run directory, and keeps for
every example the nearest misclassified point that any evaluation has found: a later,
stronger attack can only lower the accuracy reported as best known.
"""

import json
import math
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags

from experiments.common import attack_specs, cli, evaluation, figures, measure, pieces
from opnorm import analysis, data, runs, training

_RUN = flags.DEFINE_string(
    "run", None, "run directory, or a folder of checkpoints (required)"
)
flags.DEFINE_alias("checkpoint", "run")
pieces.define_fresh_flag()
_OUT = flags.DEFINE_string("out", None, "where to write; by default the run directory")
_DATASET = flags.DEFINE_string(
    "dataset", None, "data set to evaluate on; by default the one trained on"
)
_DATA_DIR = flags.DEFINE_string(
    "data_dir",
    None,
    "where TensorFlow Datasets keeps data; the folder that the run names is not used",
)
_DOWNLOAD = flags.DEFINE_boolean("download", False, "download the data if missing")
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
_SEED = flags.DEFINE_integer("seed", 0, "of the attacks' random numbers")
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
    epsilons = sorted(set(cli.parse_floats("epsilons", _EPSILONS.value)) - {0.0})
    for name, value, least in (
        ("batch_size", _BATCH_SIZE.value, 1),
        ("part_size", _PART_SIZE.value, 1),
        ("check_examples", _CHECKS.value, 0),
    ):
        if value < least:
            raise ValueError(f"{name} is {value}; it must be at least {least}.")
    if not epsilons or not all(0 <= e < math.inf for e in epsilons):
        raise ValueError(
            f"epsilons are {epsilons}; each must be finite and at least 0, one above."
        )
    specs = [attack_specs.parse_attack(text) for text in _ATTACK.value]
    split, first, last = cli.parse_split(_SPLIT.value)
    baseline = None
    if _BASELINE.value:
        baseline = json.loads(Path(_BASELINE.value).read_text())
    run = training.load_run(_RUN.value)
    config, network = run.config, run.network
    p = config.p if _P.value is None else _P.value
    if not p >= 1:
        raise ValueError(f"p is {p}; it must be in [1, inf].")
    for spec in specs:
        attack_specs.factory(spec, p)(np.float32(epsilons[0]))
    norm = measure.norm_name(p)
    if baseline is not None and norm not in baseline.get("best_known", {}):
        raise ValueError(f"baseline {_BASELINE.value} has no {norm} distances.")
    test_set = data.load(
        measure.dataset_name(_DATASET.value, config),
        split=split,
        data_dir=_DATA_DIR.value,
        download=_DOWNLOAD.value,
        # Drawn at random unless a slice says which.
        limit=_EXAMPLES.value if (first, last) == (None, None) else None,
        image_size=training.image_size(config, _DATASET.value),
    )
    test_set = test_set.slice(first, last).slice(0, _EXAMPLES.value)
    measure.check_fit(_RUN.value, config, network, test_set)
    identity = pieces.fingerprint(config, network, test_set)
    out = cli.hold(runs.RunDirectory.for_results(_OUT.value or _RUN.value))
    parts = pieces.Parts(out.path / "evaluation", fresh=flags.FLAGS.fresh)

    clean = analysis.evaluate_accuracy(
        network,
        test_set.images,
        test_set.labels,
        batch_size=_BATCH_SIZE.value,
    )
    nearest = np.where(clean.correct, np.inf, 0.0)
    cards: dict[str, dict[str, object]] = {}
    checks = []
    for spec in specs:
        found = evaluation.attack_in_parts(
            network,
            test_set,
            spec,
            p=p,
            epsilons=epsilons,
            batch_size=_BATCH_SIZE.value,
            part_size=_PART_SIZE.value,
            seed=_SEED.value,
            parts=parts,
            identity=identity,
        )
        nearest = np.minimum(nearest, found["distance"].min(axis=0))
        if not attack_specs.has_budget(spec):
            cards[str(spec)] = {
                **evaluation.distance_card(
                    found["distance"][0], epsilons, found["seconds"]
                ),
                **{name: found[name] for name in ("pieces", "reused")},
            }
            continue
        card = evaluation.budget_card(found, spec, p, epsilons, clean.correct)
        card |= {name: found[name] for name in ("pieces", "reused")}
        cards[str(spec)] = card
        for name, after in card.get("after", {}).items():
            if name == "square":
                before = list(card["after"].values())[-2]
                pairs = zip(before, after, strict=True)
                checks += [analysis.square_check(*pair) for pair in pairs]
    if _CHECKS.value:
        tested = slice(0, _CHECKS.value)
        checks += analysis.sanity_checks(
            network,
            test_set.images[tested],
            test_set.labels[tested],
            p=p,
            epsilon=config.epsilon if config.p == p else epsilons[len(epsilons) // 2],
            batch_size=_BATCH_SIZE.value,
            key=jax.random.key(_SEED.value),
        )
        largest = analysis.budget_check(epsilons[-1], p=p, shape=test_set.image_shape)
        checks += [] if largest.passed or largest in checks else [largest]

    known, contributors, earlier = evaluation.best_known(
        parts.below("best_known"), norm, identity, nearest, [str(s) for s in specs]
    )
    standing = ~evaluation.within(known, np.array([[0.0, *epsilons]]).T)
    mean, error = evaluation.mean_and_error(standing)
    reached = known[np.isfinite(known)]
    card = {
        "run": _RUN.value,
        "step": run.step,
        "data": test_set.description,
        "split": _SPLIT.value,
        "examples": len(test_set),
        "norm": norm,
        "p": p,
        "seed": _SEED.value,
        "environment": runs.environment(),
        "git_revision": runs.git_revision(),
        "clean_accuracy": clean.mean,
        "clean_standard_error": clean.standard_error,
        "attacks": cards,
        "best_known": {
            norm: {
                "epsilon": [0.0, *epsilons],
                "mean": mean,
                "standard_error": error,
                "mean_distance": float(reached.mean()) if len(reached) else None,
                "found": len(reached) / len(known),
                "attacks": contributors,
                "earlier_attacks": earlier,
            }
        },
        "checks": [check._asdict() for check in checks],
    }
    if baseline is not None:
        ratio = evaluation.improvement(card, baseline, norm)
        card["improvement"] = {"baseline": _BASELINE.value, **ratio}
    if _SPECTRUM.value:
        card["spectrum"] = measure.spectrum(
            network,
            test_set,
            p=p,
            epsilon=config.epsilon if config.p == p else epsilons[len(epsilons) // 2],
            num_steps=10,
            batch_size=_BATCH_SIZE.value,
            seed=_SEED.value,
        )
    out.write_json("evaluation.json", card)
    out.write_text("evaluation.md", evaluation.table(card))
    _draw(out, card, nearest, config.epsilon if config.p == p else None)
    print(evaluation.table(card))
    print(f"written to {Path(out.path)}")


def _draw(
    out: runs.RunDirectory,
    card: dict[str, Any],
    nearest: np.ndarray,
    training_epsilon: float | None,
) -> None:
    title = f"{card['data']}, {card['examples']} pictures"
    norm = str(card["norm"])
    curves = {
        name: found for name, found in card["attacks"].items() if "epsilon" in found
    }
    curves["best known"] = card["best_known"][norm]
    figures.plot_accuracy(
        curves,
        out.figure_path("accuracy"),
        training_epsilon=training_epsilon,
        norm=norm,
        title=title,
    )
    figures.plot_distances(
        {"all attacks": nearest},
        out.figure_path("distances"),
        training_epsilon=training_epsilon,
        norm=norm,
        title=title,
    )
    if "spectrum" in card:
        figures.plot_singular_values(
            {"network": card["spectrum"]["singular_values"]},
            out.figure_path("singular_values"),
            title=title,
        )


if __name__ == "__main__":
    cli.run(main)
