r"""Measures how linear networks are around images, at random and under attack.

  python -m experiments.linearity --run=runs/snr
  python -m experiments.linearity --run=runs/standard --run=runs/adversarial \
    --run=runs/snr --out=runs/comparison

For one run, or several to compare, against the L2 length of a perturbation z:

- the deviation of the features from their linearisation, and its part of their change;
- the largest singular value of the features' Jacobian at x + z;
- the part of the ReLU units that x and x + z leave in the same state.

z is what PGA adds, in L2 and in Linf, or a random direction of the same length;
activation patterns are compared under uniform noise too, around images and around
uniformly random inputs. Features are what enters the last linear layer. Writes
results.json and figures.
"""

import functools
import math
from typing import Any

import jax
import numpy as np
from absl import flags

from experiments.common import cli, comparison, measure, options, records, tables
from experiments.common.figures import label
from experiments.common.records import Record
from experiments.common.tables import Column
from experiments.linearity import figures
from opnorm import analysis, attacks, data, linalg, runs

_FOLDER = "linearity"
comparison.define_flags(_FOLDER)
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

_COLUMNS = (
    Column("network", "network", label),
    Column("attack", "attack"),
    Column("L2 length", "length", tables.number("{:.2f}")),
    Column("deviation", "deviation", tables.number()),
    Column("of the change", "relative_deviation", tables.number()),
    Column("sigma(J(x + z))", "sigma", tables.number()),
    Column("units unchanged", "shared_activations", tables.number()),
)

_norm = jax.jit(functools.partial(linalg.norm, p=2.0))


def main() -> None:
    """Measures every network, writes results and figures."""
    lengths = {
        2.0: options.parse_lengths("epsilons", _EPSILONS.value),
        math.inf: options.parse_lengths("epsilons_inf", _EPSILONS_INF.value),
    }
    noise = options.parse_lengths("noise", _NOISE.value)
    if not noise:
        raise ValueError("noise is empty; give at least one magnitude.")
    compared = comparison.open_runs(_FOLDER, flags.FLAGS.examples)
    examples = compared.examples
    results: Record = {
        **comparison.card(compared, len(examples)),
        "networks": {},
    }
    for network in compared.networks:
        found: Record = {}
        for p, epsilons in lengths.items():
            if epsilons:
                found[measure.norm_name(p)] = _around(network, examples, p, epsilons)
        found["noise"] = _noise(network, examples, noise)
        results["networks"][network.name] = found
    compared.out.write_json("results.json", results)
    marks = comparison.training_epsilons(compared.networks, 2.0)
    for p, epsilons in lengths.items():
        if epsilons:
            figures.draw_linearity(compared.out, results, measure.norm_name(p), marks)
    figures.draw_activations(compared.out, results, marks)
    rows = _rows(results, marks)
    records.report(compared.out, tables.table(rows, _COLUMNS) if rows else "")


def _around(
    network: comparison.NamedNetwork,
    examples: data.Dataset,
    p: float,
    epsilons: list[float],
) -> Record:
    """Returns curves against the length of adversarial and of random perturbations."""
    key = jax.random.key(flags.FLAGS.seed)
    clean = np.asarray(data.to_float(examples.images))
    curves: dict[str, list[Record]] = {"adversarial": [], "random": []}
    with runs.Progress(
        2 * (len(epsilons) + 1),
        description=f"{network.name}: {measure.norm_name(p)} perturbations",
        examples=len(examples),
        unit="length",
    ) as progress:
        for place, epsilon in enumerate([0.0, *epsilons]):
            delta = comparison.attacked(network, examples, p=p, epsilon=epsilon)
            drawn = jax.random.fold_in(key, place)
            both = (delta, analysis.random_directions(delta, drawn))
            for number, (kind, z) in enumerate(zip(curves, both, strict=True)):
                point = _point(network, clean, z, key)
                curves[kind].append({"epsilon": epsilon, **point})
                progress.update(2 * place + number + 1)
    return {kind: _transposed(points) for kind, points in curves.items()}


def _point(
    network: comparison.NamedNetwork, x: np.ndarray, z: np.ndarray, key: jax.Array
) -> Record:
    """Returns the averages of all quantities between x and x + z."""
    size = flags.FLAGS.batch_size
    features = network.f.features
    linear = analysis.deviation_from_linearity(features, x, z, batch_size=size)
    norms = analysis.jacobian_norms(
        features, x + z, key=key, num_steps=_SEARCH_STEPS, batch_size=size
    )
    shared = analysis.activation_agreement(
        network.f.preactivations, x, z, batch_size=size
    )
    return {
        "length": records.mean_and_error(linear.length),
        "deviation": records.mean_and_error(linear.deviation),
        "relative_deviation": records.mean_and_error(linear.relative),
        "sigma": records.mean_and_error(norms.values),
        "shared_activations": records.mean_and_error(shared),
    }


def _noise(
    network: comparison.NamedNetwork, examples: data.Dataset, magnitudes: list[float]
) -> Record:
    """Returns curves under uniform noise, around images and around random inputs."""
    seed = flags.FLAGS.seed
    shape = examples.images.shape
    drawn = np.random.default_rng(seed).uniform(size=shape).astype(np.float32)
    clean = np.asarray(data.to_float(examples.images))
    curves: dict[str, list[Record]] = {"pictures": [], "random_inputs": []}
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
                curves[kind].append(
                    {
                        "magnitude": magnitude,
                        "length": records.mean_and_error(_norm(z)),
                        "shared_activations": records.mean_and_error(shared),
                    }
                )
            progress.update(place + 1)
    return {kind: _transposed(points) for kind, points in curves.items()}


def _uniform(epsilon: Any) -> attacks.Attack:
    return attacks.uniform_noise(p=math.inf, epsilon=epsilon, bounds=None)


def _transposed(points: list[Record]) -> Record:
    """Returns the points of a curve as one list for each quantity."""
    curve: Record = jax.tree.map(lambda *column: list(column), *points)
    return curve


def _rows(results: Record, marks: list[float]) -> list[Record]:
    """Returns each network and attack at the length nearest to that of the training."""
    rows = []
    for name, found in results["networks"].items():
        for norm in (norm for norm in found if norm != "noise"):
            curve = found[norm]["adversarial"]
            lengths = curve["length"]["mean"]
            target = marks[0] if marks else lengths[len(lengths) // 2]
            place = min(range(len(lengths)), key=lambda i: abs(lengths[i] - target))
            means = {
                quantity: curve[quantity]["mean"][place]
                for quantity in curve
                if quantity != "epsilon"
            }
            rows.append({"network": name, "attack": f"{norm} PGA", **means})
    return rows


if __name__ == "__main__":
    cli.run(main)
