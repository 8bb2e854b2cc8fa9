r"""Measures the curvature of the loss of networks, in the parameters and in the inputs.

  opnorm curvature --run=runs/snr
  opnorm curvature --run=runs/standard --run=runs/adversarial \
    --run=runs/snr --out=runs/comparison

  opnorm curvature --run='runs/snr-seed{seed}' --seeds=0,1,2
  opnorm curvature --network=mine:make --variables=mine.npz \
    --dataset=cifar10_mini --out=runs/mine

For one network, or several to compare:

- the eigenvalue density of the Hessian, and of its Gauss-Newton part, of the mean
  cross-entropy of training images in all parameters, with both ends of the spectrum
  and the trace;
- at each of --examples test images the extreme eigenvalues and the trace of the
  Hessian of the cross-entropy in the input, the length of its gradient, and the largest
  singular value of the logits' Jacobian.

BatchNorm uses its running statistics and images are not augmented, so the loss is a
mean over images. Each network is tried at each image: where it is piecewise linear, the
Hessian in the input is exact; elsewhere (smooth ReLU, ELU, response normalisation) its
eigenvalues are those of --num_steps Lanczos steps, with error bounds, and its trace is
an estimate from --num_probes random probes, with standard errors. With --seeds all
numbers are means over networks that differ in the seed alone.

A network of your own is a function of a module; for the Hessian in the parameters it is
a callable pytree, such as jax.tree_util.Partial(apply, variables). Writes results.json,
table.md and figures.
"""

import jax
import numpy as np
from absl import flags

from experiments.common import cli, comparison, drawings, options, records, seeds
from experiments.common.records import Record
from experiments.curvature import figures, tables
from opnorm import analysis, data, linalg, runs

_FOLDER = "curvature"
comparison.define_flags(_FOLDER)
# There is no attack here.
flags.DEFINE_integer(
    "num_steps",
    30,
    "steps of each Lanczos process: more bring the ends of the spectrum closer",
    allow_override=True,
)
_TRAIN_EXAMPLES = flags.DEFINE_integer(
    "train_examples",
    400,
    "training images that the Hessian in the parameters is of, among those that all "
    "runs were trained on; 0 to leave it out",
)
_PROBES = flags.DEFINE_integer(
    "num_probes",
    4,
    "random probes of the Hessian in the parameters, and of the trace of that in the "
    "input where a network is not piecewise linear; at least 2 for error bars",
)


def main() -> None:
    """Measures every network, writes results and figures."""
    count = _TRAIN_EXAMPLES.value
    options.check_at_least(0, _TRAIN_EXAMPLES)
    options.check_at_least(2, _PROBES)
    compared = comparison.open_runs(_FOLDER, flags.FLAGS.examples)
    images = _training_images(compared, count) if count else None
    results: Record = {
        **comparison.card(compared, len(compared.examples)),
        "train_examples": count,
        "num_probes": _PROBES.value,
        "networks": {
            name: seeds.average(
                [{"inputs": _inputs(network, compared.examples)} for network in members]
            )
            for name, members in compared.groups.items()
        },
    }
    if images is not None:
        for matrix in analysis.PARAMETER_MATRICES:
            found = _densities(compared.groups, images, matrix)
            for name, summary in found.items():
                results["networks"][name][matrix] = summary
    compared.out.write_json("results.json", results)
    drawings.write(compared.out, results)
    text = tables.text(results)
    compared.out.write_text("table.md", text)
    records.report(compared.out, text.rstrip("\n"))


def _densities(
    groups: comparison.Groups, images: data.Dataset, matrix: str
) -> dict[str, Record]:
    """Returns the spectra in the parameters, with their densities on one grid."""
    spectra = {
        name: [_parameters(network, images, matrix) for network in members]
        for name, members in groups.items()
    }
    curves = iter(
        analysis.density_curves(
            [s.density for group in spectra.values() for s in group]
        )
    )
    found = {}
    for name, group in spectra.items():
        each = [
            _summary(spectrum) | {"density": next(curves)._asdict()}
            for spectrum in group
        ]
        found[name] = seeds.average(each)
        if len(each) > 1:
            # Nodes and weights have no mean over networks.
            found[name] |= {n: [one[n] for one in each] for n in ("nodes", "weights")}
    return found


def _training_images(compared: comparison.Comparison, count: int) -> data.Dataset:
    given = flags.FLAGS
    name = compared.examples.name
    for network in compared.networks:
        config = network.config
        if config is None:
            _check_parameters(network)
            continue
        used = config.train_examples
        if config.dataset == name and used is not None and used < count:
            raise ValueError(
                f"train_examples is {count}; {network.name} was trained on {used}."
            )
    # The training set of a run begins with these.
    images = data.load(
        name,
        split="train",
        data_dir=given.data_dir,
        download=given.download,
        limit=count,
        image_size=comparison.image_size(compared.configs),
    )
    if len(images) < count:
        raise ValueError(f"train_examples is {count}; {name} has {len(images)}.")
    return images


def _check_parameters(network: comparison.NamedNetwork) -> None:
    """Raises a ValueError for a plain function, whose parameters are not known."""
    if not linalg.keeps_programs(network.f):
        raise ValueError(
            f"network {network.name} is a plain function, whose parameters are not "
            "known; return a callable pytree, such as "
            "jax.tree_util.Partial(apply, variables), or give --train_examples=0."
        )


def _inputs(network: comparison.NamedNetwork, examples: data.Dataset) -> Record:
    """Returns summaries over the examples, and the errors of the Hessians."""
    with runs.Progress(
        len(examples), description=f"{network.name}: inputs", unit="image"
    ) as progress:
        found = analysis.input_curvature(
            network.f,
            examples.images,
            examples.labels,
            num_steps=flags.FLAGS.num_steps,
            num_probes=_PROBES.value,
            batch_size=flags.FLAGS.batch_size,
            key=jax.random.key(flags.FLAGS.seed),
            on_progress=lambda part: progress.update(round(part * len(examples))),
        )
    values = found._asdict()
    quantities = (*figures.QUANTITIES, "smallest")
    return {name: _distribution(values[name]) for name in quantities} | {
        "curved": float(found.curved.mean()),
        "eigenvalue_error": _mean_and_maximum(found.error),
        "trace_error": _mean_and_maximum(found.trace_error),
    }


def _distribution(values: np.ndarray) -> Record:
    return {
        **records.mean_and_error(values),
        "median": float(np.median(values)),
        "maximum": float(values.max()),
        "percentiles": np.percentile(values, np.arange(101)).tolist(),
    }


def _mean_and_maximum(values: np.ndarray) -> dict[str, float]:
    return {"mean": float(values.mean()), "maximum": float(values.max())}


def _parameters(
    network: comparison.NamedNetwork, images: data.Dataset, matrix: str
) -> analysis.ParameterSpectrum:
    with runs.Progress(
        _PROBES.value,
        description=f"{network.name}: {matrix.replace('_', '-')}",
        examples=flags.FLAGS.num_steps * len(images),
        unit="probe",
    ) as progress:
        return analysis.parameter_spectrum(
            network.f,
            images.images,
            images.labels,
            matrix=matrix,
            num_steps=flags.FLAGS.num_steps,
            num_probes=_PROBES.value,
            batch_size=flags.FLAGS.batch_size,
            key=jax.random.key(flags.FLAGS.seed),
            on_progress=lambda part: progress.update(round(part * _PROBES.value)),
        )


def _summary(found: analysis.ParameterSpectrum) -> Record:
    return {
        "parameters": found.size,
        "largest": found.largest._asdict(),
        "smallest": found.smallest._asdict(),
        "trace": {
            "mean": float(found.trace.mean),
            "standard_error": float(found.trace.standard_error),
        },
        "nodes": found.density.nodes[0].tolist(),
        "weights": found.density.weights[0].tolist(),
    }


if __name__ == "__main__":
    cli.run(main)
