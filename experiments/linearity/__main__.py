r"""Measures how linear networks are around images, at random and under attack.

  opnorm linearity --run=runs/snr
  opnorm linearity --run=runs/standard --run=runs/adversarial \
    --run=runs/snr --out=runs/comparison

  opnorm linearity --run='runs/snr-seed{seed}' --seeds=0,1,2
  opnorm linearity --network=mine:make --variables=mine.npz \
    --dataset=cifar10_mini --out=runs/mine

For one network, or several to compare, against the L2 length of a perturbation z:

- the deviation of the features from their linearisation, and its part of their change;
- the largest singular value of the features' Jacobian at x + z;
- the part of the ReLU units that x and x + z leave in the same state.

z is the perturbation of PGA, in L2 and in Linf, or a random direction of the same
length; activation patterns are compared under uniform noise too, around images and
around uniformly random inputs. Features are the inputs of the last linear layer. Errors
are over the examples, or with --seeds over networks that differ in the seed alone.

A network of your own is a function of a module. Its attributes "features" and
"preactivations" are functions of a batch too; without the first the logits stand for
the features, without the second no activation patterns are compared. Writes
results.json, table.md and figures.
"""

import functools
import math
from typing import Any

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
from experiments.linearity import tables
from opnorm import analysis, attacks, data, linalg, runs

_FOLDER = "linearity"
comparison.define_flags(_FOLDER)
comparison.define_length_flags(("0.125", "0.25", "0.5", "0.75", "1.0", "1.5"), "of PGA")
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
    lengths = comparison.read_lengths()
    noise = options.parse_lengths("noise", _NOISE.value)
    if not noise:
        raise ValueError("noise is empty; give at least one magnitude.")
    compared = comparison.open_runs(_FOLDER, flags.FLAGS.examples)
    comparison.say_which_have_no_features(compared)
    examples = compared.examples
    results: Record = {**comparison.card(compared, len(examples)), "networks": {}}
    for name, members in compared.groups.items():
        found = [_measure(network, examples, lengths, noise) for network in members]
        results["networks"][name] = seeds.average(found)
    compared.out.write_json("results.json", results)
    drawings.write(compared.out, results)
    marks = comparison.training_epsilons(compared.configs, 2.0)
    text = tables.text(results, marks)
    compared.out.write_text("table.md", text)
    records.report(compared.out, text.rstrip("\n"))


def _measure(
    network: comparison.NamedNetwork,
    examples: data.Dataset,
    lengths: dict[float, list[float]],
    noise: list[float],
) -> Record:
    """Returns all curves of a network."""
    found = {
        measure.norm_name(p): _around(network, examples, p, epsilons)
        for p, epsilons in lengths.items()
    }
    if network.preactivations is not None:
        found["noise"] = _noise(network, network.preactivations, examples, noise)
    return found


def _around(
    network: comparison.NamedNetwork,
    examples: data.Dataset,
    p: float,
    epsilons: list[float],
) -> Record:
    """Returns curves against the length of adversarial and of random perturbations."""
    key = jax.random.key(flags.FLAGS.seed)
    clean = np.asarray(examples.pixels())
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
    features = network.features
    linear = analysis.deviation_from_linearity(features, x, z, batch_size=size)
    norms = analysis.jacobian_norms(
        features, x + z, key=key, num_steps=_SEARCH_STEPS, batch_size=size
    )
    found = {
        "length": linear.length,
        "deviation": linear.deviation,
        "relative_deviation": linear.relative,
        "sigma": norms.values,
    }
    if network.preactivations is not None:
        found["shared_activations"] = analysis.activation_agreement(
            network.preactivations, x, z, batch_size=size
        )
    return {name: records.mean_and_error(values) for name, values in found.items()}


def _noise(
    network: comparison.NamedNetwork,
    preactivations: linalg.Network,
    examples: data.Dataset,
    magnitudes: list[float],
) -> Record:
    """Returns curves under uniform noise, around images and around random inputs."""
    seed = flags.FLAGS.seed
    shape = examples.images.shape
    drawn = np.random.default_rng(seed).uniform(size=shape).astype(np.float32)
    clean = np.asarray(examples.pixels())
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
                    preactivations,
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


if __name__ == "__main__":
    cli.run(main)
