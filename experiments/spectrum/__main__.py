r"""Measures which directions networks amplify, and whether attacks point along them.

  python -m experiments.spectrum --run=runs/snr
  python -m experiments.spectrum --run=runs/standard --run=runs/adversarial \
    --run=runs/snr --out=runs/comparison

For one run, or several to compare:

- all singular values of the Jacobians of features and logits, at clean examples and at
  their adversarial versions;
- the alignment of adversarial perturbations with each right singular vector of the
  features' Jacobian at the clean example, against an untrained network of the same
  shape and against random perturbations;
- the alignment with the dominant vector against the length of the perturbation.

Features are the inputs of the last linear layer. Writes results.json and figures.
"""

import jax
import numpy as np
from absl import flags

from experiments.common import cli, comparison, measure, options, records, tables
from experiments.common.figures import label
from experiments.common.records import Record
from experiments.common.tables import Column
from experiments.spectrum import figures
from opnorm import analysis, data, runs, training

_FOLDER = "spectrum"
comparison.define_flags(_FOLDER)
_EPSILON = flags.DEFINE_float(
    "epsilon",
    None,
    "L2 length of the perturbations for spectra and ranks, in [0, 1] pixel units; by "
    "default the first run's training epsilon, or 0.5 if that was in another norm",
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

_FEATURES = ("singular_values", "features")
_COSINE = ("alignment_by_rank", "cosine")
_COLUMNS = (
    Column("network", "name", label),
    Column(
        "sigma_1 of features, clean", (*_FEATURES, "clean", "mean", 0), tables.number()
    ),
    Column("adversarial", (*_FEATURES, "adversarial", "mean", 0), tables.number()),
    Column(
        "alignment with v_1",
        (*_COSINE, "adversarial", "mean", 0),
        tables.number("{:.3f}"),
    ),
    Column(
        "random perturbation",
        (*_COSINE, "random", "mean", 0),
        tables.number("{:.3f}"),
    ),
)

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
    first = compared.networks[0].config
    epsilon = _EPSILON.value
    if epsilon is None:
        epsilon = training.in_pixels(first).epsilon if first.p == 2 else 0.5
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
    for network in (*compared.networks, *baselines):
        measured[network.name] = {
            **_ranks(network, few, epsilon),
            "alignment_by_length": _lengths(network, many, lengths),
        }
    compared.out.write_json("results.json", results)
    trained = [network.name for network in compared.networks]
    figures.draw_spectra(compared.out, results, trained)
    figures.draw_alignment_by_rank(compared.out, results)
    for p in lengths:
        marks = comparison.training_epsilons(compared.networks, p)
        figures.draw_alignment_by_length(
            compared.out, results, measure.norm_name(p), marks
        )
    table = tables.table(tables.named(results["networks"]), _COLUMNS)
    records.report(compared.out, table)


def _ranks(
    network: comparison.NamedNetwork, examples: data.Dataset, epsilon: float
) -> Record:
    """Returns singular values, and the alignment of perturbations with all vectors."""
    key = jax.random.key(flags.FLAGS.seed)
    delta = comparison.attacked(network, examples, p=2.0, epsilon=epsilon)
    random = analysis.random_directions(delta, jax.random.fold_in(key, 1))
    clean = np.asarray(data.to_float(examples.images))
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

        features, f = network.f.features, network.f
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
        network.f.features,
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
