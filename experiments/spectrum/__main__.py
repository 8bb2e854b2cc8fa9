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

Features are what enters the last linear layer. Writes results.json and figures.
"""

import math
from typing import Any

import jax
import numpy as np
from absl import flags

from experiments.common import cli, measure, networks, spectrum_figures
from opnorm import analysis, data, runs

_FOLDER = "spectrum"
networks.define_flags(_FOLDER)
_EPSILON = flags.DEFINE_float(
    "epsilon",
    None,
    "L2 length of the perturbations for spectra and ranks, in [0, 1] pixel units; by "
    "default the first run's training epsilon, or 0.5 if that was in another norm",
)
_ALIGNMENT_EXAMPLES = flags.DEFINE_integer(
    "alignment_examples",
    None,
    "how many examples for the alignment against length, which costs less than the "
    "spectra; by default as many as --examples",
)
_EPSILONS = flags.DEFINE_list(
    "epsilons",
    ["0.0625", "0.125", "0.25", "0.5", "0.75", "1.0"],
    "L2 lengths for the alignment with the dominant vector; empty for none",
)
_EPSILONS_INF = flags.DEFINE_list(
    "epsilons_inf",
    ["0.002", "0.004", "0.008", "0.016", "0.031"],
    "Linf lengths for the same; empty for none",
)
_MAX_BYTES = flags.DEFINE_integer(
    "max_bytes", 2**30, "memory for Jacobians and their decompositions at a time"
)

# Golub-Kahan steps for the dominant vector: far more than its value needs.
_SEARCH_STEPS = 20

_alignment = jax.jit(analysis.alignment)


def main() -> None:
    """Measures every network, writes results and figures."""
    lengths = {
        2.0: networks.read_lengths("epsilons", _EPSILONS.value),
        math.inf: networks.read_lengths("epsilons_inf", _EPSILONS_INF.value),
    }
    count = flags.FLAGS.examples
    aligned = _ALIGNMENT_EXAMPLES.value
    if aligned is not None and aligned < 2:
        raise ValueError(f"alignment_examples is {aligned}; it must be at least 2.")
    if _EPSILON.value is not None and not 0 < _EPSILON.value < math.inf:
        raise ValueError(
            f"epsilon is {_EPSILON.value}; it must be positive and finite."
        )
    comparison = networks.open_runs(_FOLDER, max(count, aligned or 0))
    first = comparison.networks[0].config
    epsilon = _EPSILON.value
    if epsilon is None:
        epsilon = first.epsilon if first.p == 2 else 0.5
    few = comparison.examples.slice(0, count)
    many = comparison.examples.slice(0, aligned or count)

    results: dict[str, Any] = {
        **networks.card(comparison, len(few)),
        "alignment_examples": len(many),
        "epsilon": epsilon,
        "expected_random_alignment": analysis.expected_random_alignment(
            few.images[0].size
        ),
        "networks": {},
    }
    measured = results["networks"]
    baselines = networks.untrained(comparison, flags.FLAGS.seed)
    for network in (*comparison.networks, *baselines):
        measured[network.name] = {
            **_ranks(network, few, epsilon),
            "alignment_by_length": _lengths(network, many, lengths),
        }
    comparison.out.write_json("results.json", results)
    trained = [network.name for network in comparison.networks]
    spectrum_figures.draw_spectra(comparison.out, results, trained)
    spectrum_figures.draw_alignment_by_rank(comparison.out, results)
    for p, epsilons in lengths.items():
        if epsilons:
            spectrum_figures.draw_alignment_by_length(
                comparison.out,
                results,
                measure.norm_name(p),
                networks.training_epsilons(comparison.networks, p),
            )
    print(_table(results))
    print(f"written to {comparison.out.path}")


def _ranks(
    network: networks.NamedNetwork, examples: data.Dataset, epsilon: float
) -> dict[str, Any]:
    """Singular values, and alignment of perturbations with all vectors."""
    key = jax.random.key(flags.FLAGS.seed)
    options = {
        "batch_size": flags.FLAGS.batch_size,
        "max_bytes": _MAX_BYTES.value,
    }
    delta = networks.attacked(
        network, examples, p=2.0, epsilon=epsilon, seed=flags.FLAGS.seed
    )
    random = analysis.random_directions(delta, jax.random.fold_in(key, 1))
    clean = np.asarray(data.to_float(examples.images))
    with runs.Progress(
        # Features and logits, at clean and at adversarial examples.
        4 * len(examples),
        description=f"{network.name}: spectra",
        unit="spectrum",
    ) as progress:

        def tell(stage: int) -> dict[str, Any]:
            def update(part: float) -> None:
                progress.update(int((stage + part) * len(examples)))

            return {**options, "on_progress": update}

        ranked = analysis.alignment_by_rank(
            network.f.features, clean, [delta, random], **tell(0)
        )
        moved = analysis.singular_values(network.f.features, clean + delta, **tell(1))
        logits = [
            analysis.singular_values(network.f, points, **tell(stage))
            for stage, points in ((2, clean), (3, clean + delta))
        ]
    curves = {}
    for measure_name in ("cosine", "pearson"):
        values = getattr(ranked, measure_name)
        curves[measure_name] = {
            kind: _defined(analysis.average(values[:, place], ranked.defined))
            for place, kind in enumerate(("adversarial", "random"))
        }
    return {
        "singular_values": {
            "features": {
                "clean": networks.averaged(ranked.values),
                "adversarial": networks.averaged(moved),
            },
            "logits": {
                "clean": networks.averaged(logits[0]),
                "adversarial": networks.averaged(logits[1]),
            },
        },
        "alignment_by_rank": curves,
    }


def _lengths(
    network: networks.NamedNetwork,
    examples: data.Dataset,
    lengths: dict[float, list[float]],
) -> dict[str, Any]:
    """By norm: alignment with the dominant vector at x against the length."""
    if not any(lengths.values()):
        return {}
    seed = flags.FLAGS.seed
    key = jax.random.key(seed)
    top = analysis.jacobian_norms(
        network.f.features,
        examples.images,
        batch_size=flags.FLAGS.batch_size,
        key=key,
        num_steps=_SEARCH_STEPS,
    )
    # Where all features are dead there is no dominant vector.
    alive = (top.values > 0)[:, None]
    curves: dict[str, Any] = {}
    with runs.Progress(
        sum(len(epsilons) for epsilons in lengths.values()),
        description=f"{network.name}: alignment",
        examples=len(examples),
        unit="length",
    ) as progress:
        done = 0
        for p, epsilons in lengths.items():
            found: dict[str, list[Any]] = {"adversarial": [], "random": []}
            for epsilon in epsilons:
                delta = networks.attacked(
                    network, examples, p=p, epsilon=epsilon, seed=seed
                )
                done += 1
                random = analysis.random_directions(
                    delta, jax.random.fold_in(key, done)
                )
                for kind, z in (("adversarial", delta), ("random", random)):
                    found[kind].append(_alignment(z, top.right))
                progress.update(done)
            if epsilons:
                curves[measure.norm_name(p)] = {
                    "epsilon": epsilons,
                    **{
                        kind: networks.averaged(np.stack(columns, axis=1), alive)
                        for kind, columns in found.items()
                    },
                }
    return curves


def _defined(average: analysis.Average) -> dict[str, list[float]]:
    """The ranks at which two examples or more have a singular vector."""
    last = int((average.counted >= 2).sum())
    return {name: part[:last].tolist() for name, part in average._asdict().items()}


def _table(results: dict[str, Any]) -> str:
    rows = []
    for name, found in results["networks"].items():
        features = found["singular_values"]["features"]
        cosine = found["alignment_by_rank"]["cosine"]
        rows.append(
            {
                "network": spectrum_figures.label(name),
                "sigma_1 of features, clean": f"{features['clean']['mean'][0]:.3g}",
                "adversarial": f"{features['adversarial']['mean'][0]:.3g}",
                "alignment with v_1": f"{cosine['adversarial']['mean'][0]:.3f}",
                "random perturbation": f"{cosine['random']['mean'][0]:.3f}",
            }
        )
    return cli.table(rows)


if __name__ == "__main__":
    cli.run(main)
