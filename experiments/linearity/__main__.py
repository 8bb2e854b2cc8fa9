r"""Measures how linear networks are around pictures, at random and under attack.

  python -m experiments.linearity --run=runs/snr
  python -m experiments.linearity --run=runs/standard --run=runs/adversarial \
    --run=runs/snr --out=runs/comparison

For one run, or several to compare, against the L2 length of a perturbation z:

- the deviation of the features from their linearisation, and its part of their change;
- the largest singular value of the features' Jacobian at x + z;
- the part of the ReLU units that x and x + z leave in the same state.

z is what PGA adds, in L2 and in Linf, or a random direction of the same length;
activation patterns are compared under uniform noise too, around pictures and around
uniformly random inputs. Features are what enters the last linear layer. Writes
results.json and figures.
"""

import functools
import math
from typing import Any

import jax
import numpy as np
from absl import flags

from experiments.common import cli, measure, networks, spectrum_figures
from opnorm import analysis, attacks, data, linalg, runs

_FOLDER = "linearity"
networks.define_flags(_FOLDER)
_EPSILONS = flags.DEFINE_list(
    "epsilons",
    ["0.125", "0.25", "0.5", "0.75", "1.0", "1.5"],
    "L2 lengths of PGA, in [0, 1] pixel units; empty for none",
)
_EPSILONS_INF = flags.DEFINE_list(
    "epsilons_inf",
    ["0.002", "0.004", "0.008", "0.016", "0.031"],
    "Linf lengths of PGA; empty for none",
)
_NOISE = flags.DEFINE_list(
    "noise",
    ["0.004", "0.008", "0.016", "0.031", "0.047"],
    "magnitudes e of the noise, uniform in [-e, e] in every pixel and channel",
)

# Golub-Kahan steps for the largest singular value: more than its third digit needs.
_SEARCH_STEPS = 12

_norm = jax.jit(functools.partial(linalg.norm, p=2.0))


def main() -> None:
    """Measures every network, writes results and figures."""
    lengths = {
        2.0: networks.read_lengths("epsilons", _EPSILONS.value),
        math.inf: networks.read_lengths("epsilons_inf", _EPSILONS_INF.value),
    }
    noise = networks.read_lengths("noise", _NOISE.value)
    if not noise:
        raise ValueError("noise is empty; give at least one magnitude.")
    comparison = networks.open_runs(_FOLDER, flags.FLAGS.examples)
    examples = comparison.examples
    results: dict[str, Any] = {
        **networks.card(comparison, len(examples)),
        "networks": {},
    }
    for network in comparison.networks:
        found: dict[str, Any] = {}
        for p, epsilons in lengths.items():
            if epsilons:
                found[measure.norm_name(p)] = _around(network, examples, p, epsilons)
        found["noise"] = _noise(network, examples, noise)
        results["networks"][network.name] = found
    comparison.out.write_json("results.json", results)
    marks = networks.training_epsilons(comparison.networks, 2.0)
    for p, epsilons in lengths.items():
        if epsilons:
            spectrum_figures.draw_linearity(
                comparison.out, results, measure.norm_name(p), marks
            )
    spectrum_figures.draw_activations(comparison.out, results, marks)
    print(_table(results, marks))
    print(f"written to {comparison.out.path}")


def _around(
    network: networks.NamedNetwork,
    examples: data.Dataset,
    p: float,
    epsilons: list[float],
) -> dict[str, Any]:
    """Curves against the length of adversarial and of random perturbations."""
    options: dict[str, Any] = {"batch_size": flags.FLAGS.batch_size}
    key = jax.random.key(flags.FLAGS.seed)
    clean = np.asarray(data.to_float(examples.images))
    curves: dict[str, list[dict[str, Any]]] = {"adversarial": [], "random": []}
    with runs.Progress(
        2 * (len(epsilons) + 1),
        description=f"{network.name}: {measure.norm_name(p)} perturbations",
        examples=len(examples),
        unit="length",
    ) as progress:
        for place, epsilon in enumerate([0.0, *epsilons]):
            delta = networks.attacked(
                network, examples, p=p, epsilon=epsilon, seed=flags.FLAGS.seed
            )
            drawn = jax.random.fold_in(key, place)
            both = (delta, analysis.random_directions(delta, drawn))
            for number, (kind, z) in enumerate(zip(curves, both, strict=True)):
                linear = analysis.deviation_from_linearity(
                    network.f.features, clean, z, **options
                )
                sigma = analysis.jacobian_norms(
                    network.f.features,
                    clean + z,
                    key=key,
                    num_steps=_SEARCH_STEPS,
                    **options,
                ).values
                shared = analysis.activation_agreement(
                    network.f.preactivations, clean, z, **options
                )
                curves[kind].append(
                    {
                        "epsilon": epsilon,
                        "length": networks.averaged(linear.length),
                        "deviation": networks.averaged(linear.deviation),
                        "relative_deviation": networks.averaged(linear.relative),
                        "sigma": networks.averaged(sigma),
                        "shared_activations": networks.averaged(shared),
                    }
                )
                progress.update(2 * place + number + 1)
    return {kind: _transposed(points) for kind, points in curves.items()}


def _noise(
    network: networks.NamedNetwork, examples: data.Dataset, magnitudes: list[float]
) -> dict[str, Any]:
    """Activation patterns under uniform noise, around pictures and random inputs."""
    seed = flags.FLAGS.seed
    shape = examples.images.shape
    drawn = np.random.default_rng(seed).uniform(size=shape).astype(np.float32)
    clean = np.asarray(data.to_float(examples.images))
    curves: dict[str, list[dict[str, Any]]] = {"pictures": [], "random_inputs": []}
    with runs.Progress(
        len(magnitudes) + 1,
        description=f"{network.name}: noise",
        examples=2 * len(examples),
        unit="magnitude",
    ) as progress:
        for place, magnitude in enumerate([0.0, *magnitudes]):
            for kind, points in (("pictures", clean), ("random_inputs", drawn)):
                z = analysis.perturbations(
                    network.f,
                    points,
                    examples.labels,
                    attack=_uniform,
                    epsilon=magnitude,
                    batch_size=flags.FLAGS.batch_size,
                    key=jax.random.fold_in(jax.random.key(seed), place),
                )
                shared = analysis.activation_agreement(
                    network.f.preactivations,
                    points,
                    z,
                    batch_size=flags.FLAGS.batch_size,
                )
                length = _norm(z)
                curves[kind].append(
                    {
                        "magnitude": magnitude,
                        "length": networks.averaged(length),
                        "shared_activations": networks.averaged(shared),
                    }
                )
            progress.update(place + 1)
    return {kind: _transposed(points) for kind, points in curves.items()}


def _uniform(epsilon: Any) -> attacks.Attack:
    return attacks.uniform_noise(p=math.inf, epsilon=epsilon, bounds=None)


def _transposed(points: list[dict[str, Any]]) -> dict[str, Any]:
    """The points of a curve as one list for each quantity."""
    return jax.tree.map(lambda *column: list(column), *points)


def _table(results: dict[str, Any], marks: list[float]) -> str:
    """What the networks do at the perturbation nearest to those of training."""
    rows = []
    for name, found in results["networks"].items():
        for norm in (norm for norm in found if norm != "noise"):
            curve = found[norm]["adversarial"]
            lengths = curve["length"]["mean"]
            target = marks[0] if marks else lengths[len(lengths) // 2]
            place = min(range(len(lengths)), key=lambda i: abs(lengths[i] - target))
            rows.append(
                {
                    "network": spectrum_figures.label(name),
                    "attack": f"{norm} PGA",
                    "L2 length": f"{lengths[place]:.2f}",
                    "deviation": _mean(curve, "deviation", place),
                    "of the change": _mean(curve, "relative_deviation", place),
                    "sigma(J(x + z))": _mean(curve, "sigma", place),
                    "units unchanged": _mean(curve, "shared_activations", place),
                }
            )
    if not rows:
        return ""
    return cli.table(rows)


def _mean(curve: dict[str, Any], name: str, place: int) -> str:
    return f"{curve[name]['mean'][place]:.3g}"


if __name__ == "__main__":
    cli.run(main)
