r"""Measures which directions networks amplify, and whether attacks point along them.

  opnorm spectrum --run=runs/snr
  opnorm spectrum --run=runs/standard --run=runs/adversarial \
    --run=runs/snr --out=runs/comparison

  opnorm spectrum --run='runs/snr-seed{seed}' --seeds=0,1,2
  opnorm spectrum --network=mine:make --variables=mine.npz \
    --dataset=cifar10_mini --out=runs/mine

For one network, or several to compare:

- all singular values of the Jacobians of features and logits, at clean examples and at
  their adversarial versions;
- the alignment of adversarial perturbations with each right singular vector of the
  features' Jacobian at the clean example, against an untrained network of the same
  shape and against random perturbations;
- the alignment with the dominant vector against the length of the perturbation.

Features are the inputs of the last linear layer. Errors are over the examples, or with
--seeds over networks that differ in the seed alone. A network of your own is a function
of a module; its attribute "features" is a function of a batch too, and without it the
logits stand for the features. Writes results.json, table.md and figures.
"""

from collections.abc import Sequence

import jax
import numpy as np
from absl import flags

from experiments.common import (
    cli,
    comparison,
    drawings,
    measure,
    options,
    records,
    seeds,
)
from experiments.common.records import Record
from experiments.spectrum import tables
from opnorm import analysis, data, runs, training

_FOLDER = "spectrum"
comparison.define_flags(_FOLDER)
_EPSILON = options.define_number(
    "epsilon",
    None,
    "L2 length of the perturbations for spectra and ranks, in [0, 1] pixel units; by "
    "default the first run's training epsilon, or 0.5 if that was in another norm or "
    "there is no run",
)
_ALIGNMENT_EXAMPLES = flags.DEFINE_integer(
    "alignment_examples",
    None,
    "number of examples for the alignment against length, which costs less than the "
    "spectra; by default as many as --examples",
)
comparison.define_length_flags(
    ("0.0625", "0.125", "0.25", "0.5", "0.75", "1.0"),
    "for the alignment with the dominant vector",
)
_MAX_BYTES = flags.DEFINE_integer(
    "max_bytes", 2**30, "memory for Jacobians and their decompositions at a time"
)

# Golub-Kahan steps for the dominant vector: far more than its value needs.
_SEARCH_STEPS = 20

_alignment = jax.jit(analysis.alignment)


def main() -> None:
    """Measures every network, writes results and figures."""
    lengths = comparison.read_lengths()
    count = flags.FLAGS.examples
    aligned = _ALIGNMENT_EXAMPLES.value
    options.check_at_least(2, _ALIGNMENT_EXAMPLES)
    if _EPSILON.value is not None:
        options.check_positive("epsilon", _EPSILON.value)
    compared = comparison.open_runs(_FOLDER, max(count, aligned or 0))
    comparison.say_which_have_no_features(compared)
    epsilon = _EPSILON.value
    if epsilon is None:
        first = compared.configs[:1]
        epsilon = training.in_pixels(first[0]).epsilon if _in_l2(first) else 0.5
    few = compared.examples.slice(0, count)
    many = compared.examples.slice(0, aligned or count)

    results: Record = {
        **comparison.card(compared, len(few)),
        "alignment_examples": len(many),
        "epsilon": epsilon,
        "expected_random_alignment": analysis.expected_random_alignment(
            few.images[0].size
        ),
        "networks": {},
    }
    measured = results["networks"]
    baselines = comparison.untrained(compared, flags.FLAGS.seed)
    for name, members in (compared.groups | baselines).items():
        found = [
            {
                **_ranks(network, few, epsilon),
                "alignment_by_length": _lengths(network, many, lengths),
            }
            for network in members
        ]
        measured[name] = seeds.average(found)
    compared.out.write_json("results.json", results)
    drawings.write(compared.out, results)
    text = tables.text(results)
    compared.out.write_text("table.md", text)
    records.report(compared.out, text.rstrip("\n"))


def _in_l2(first: Sequence[training.Config]) -> bool:
    """Whether the first run, where there is one, was trained in the L2 norm."""
    return bool(first) and first[0].p == 2


def _ranks(
    network: comparison.NamedNetwork, examples: data.Dataset, epsilon: float
) -> Record:
    """Returns singular values, and the alignment of perturbations with all vectors."""
    key = jax.random.key(flags.FLAGS.seed)
    delta = comparison.attacked(network, examples, p=2.0, epsilon=epsilon)
    random = analysis.random_directions(delta, jax.random.fold_in(key, 1))
    clean = np.asarray(examples.pixels())
    with runs.Progress(
        # Features and logits, at clean and at adversarial examples.
        4 * len(examples),
        description=f"{network.name}: spectra",
        unit="spectrum",
    ) as progress:

        def settings(stage: int) -> Record:
            def update(part: float) -> None:
                progress.update(int((stage + part) * len(examples)))

            return {
                "batch_size": flags.FLAGS.batch_size,
                "max_bytes": _MAX_BYTES.value,
                "on_progress": update,
            }

        features, f = network.features, network.f
        ranked = analysis.alignment_by_rank(
            features, clean, [delta, random], **settings(0)
        )
        values = {
            "features": {
                "clean": ranked.values,
                "adversarial": analysis.singular_values(
                    features, clean + delta, **settings(1)
                ),
            },
            "logits": {
                "clean": analysis.singular_values(f, clean, **settings(2)),
                "adversarial": analysis.singular_values(
                    f, clean + delta, **settings(3)
                ),
            },
        }
    curves = {
        kind: {
            "adversarial": _defined(analysis.average(cosines[:, 0], ranked.defined)),
            "random": _defined(analysis.average(cosines[:, 1], ranked.defined)),
        }
        for kind, cosines in (("cosine", ranked.cosine), ("pearson", ranked.pearson))
    }
    return {
        "singular_values": {
            quantity: {kind: records.mean_and_error(found[kind]) for kind in found}
            for quantity, found in values.items()
        },
        "alignment_by_rank": curves,
    }


def _defined(average: analysis.Average) -> Record:
    """Returns the ranks at which two examples or more have a singular vector."""
    last = int((average.counted >= 2).sum())
    return {name: part[:last].tolist() for name, part in average._asdict().items()}


def _lengths(
    network: comparison.NamedNetwork,
    examples: data.Dataset,
    lengths: dict[float, list[float]],
) -> Record:
    """Returns, by norm, alignments with the dominant vector at x against the length."""
    if not lengths:
        return {}
    key = jax.random.key(flags.FLAGS.seed)
    top = analysis.jacobian_norms(
        network.features,
        examples.images,
        batch_size=flags.FLAGS.batch_size,
        key=key,
        num_steps=_SEARCH_STEPS,
    )
    # Where all features are dead there is no dominant vector.
    alive = (top.values > 0)[:, None]
    curves: Record = {}
    done = 0
    with runs.Progress(
        sum(len(epsilons) for epsilons in lengths.values()),
        description=f"{network.name}: alignment",
        examples=len(examples),
        unit="length",
    ) as progress:
        for p, epsilons in lengths.items():
            found: dict[str, list[jax.Array]] = {"adversarial": [], "random": []}
            for epsilon in epsilons:
                done += 1
                delta = comparison.attacked(network, examples, p=p, epsilon=epsilon)
                drawn = jax.random.fold_in(key, done)
                random = analysis.random_directions(delta, drawn)
                found["adversarial"].append(_alignment(delta, top.right))
                found["random"].append(_alignment(random, top.right))
                progress.update(done)
            curves[measure.norm_name(p)] = {
                "epsilon": epsilons,
                **{
                    kind: records.mean_and_error(np.stack(columns, axis=1), alive)
                    for kind, columns in found.items()
                },
            }
    return curves


if __name__ == "__main__":
    cli.run(main)
