r"""Measures the curvature of the loss of networks, in the parameters and in the inputs.

  python -m experiments.curvature --run=runs/snr
  python -m experiments.curvature --run=runs/standard --run=runs/adversarial \
    --run=runs/snr --out=runs/comparison

For one run, or several to compare:

- the eigenvalue density of the Hessian, and of its Gauss-Newton part, of the mean
  cross-entropy of training pictures in all parameters, with both ends of the spectrum
  and the trace;
- at each of --examples test images the extreme eigenvalues and the trace of the
  Hessian of the cross-entropy in the input, the length of its gradient, and the largest
  singular value of the logits' Jacobian.

BatchNorm uses its running statistics and images are not augmented, so the loss is a
mean over images. Each network is tried at each image: where it is piecewise linear, the
Hessian in the input is exact; elsewhere (smooth ReLU, ELU, response normalisation) its
eigenvalues are those of --num_steps Lanczos steps, with error bounds, and its trace is
an estimate from --num_probes random probes, with standard errors. Writes results.json
and figures.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from experiments.common import cli, curvature_figures, networks, spectrum_figures
from opnorm import analysis, data, linalg, runs, training

_FOLDER = "curvature"
networks.define_flags(_FOLDER)
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

# Densities are of asinh(eigenvalue / scale), logarithmic beyond the scale both ways:
# networks differ by factors, and the bulk lies near zero. The scale is this part of the
# largest eigenvalue. The width of the Gaussians is in units of asinh; narrower ones
# would show where the nodes of the quadrature lie.
_SCALE = 0.002
_WIDTH = 0.12
_POINTS = 1001


def main() -> None:
    """Measures every network, writes results and figures."""
    count = _TRAIN_EXAMPLES.value
    if count < 0:
        raise ValueError(f"train_examples is {count}; it must be at least 0.")
    if _PROBES.value < 2:
        raise ValueError(f"num_probes is {_PROBES.value}; it must be at least 2.")
    comparison = networks.open_runs(_FOLDER, flags.FLAGS.examples)
    pictures = _training_pictures(comparison, count) if count else None
    results: dict[str, Any] = {
        **networks.card(comparison, len(comparison.examples)),
        "train_examples": count,
        "num_probes": _PROBES.value,
        "networks": {},
    }
    found = results["networks"]
    for network in comparison.networks:
        found[network.name] = {"inputs": _inputs(network, comparison.examples)}
    if pictures is not None:
        for matrix in analysis.curvature.MATRICES:
            spectra = {
                network.name: _parameters(network, pictures, matrix)
                for network in comparison.networks
            }
            for name, curve in _densities(spectra).items():
                found[name][matrix] = _summary(spectra[name]) | {"density": curve}
    comparison.out.write_json("results.json", results)
    curvature_figures.draw_input_curvature(comparison.out, results)
    if pictures is not None:
        curvature_figures.draw_densities(comparison.out, results)
        print(_parameter_table(results) + "\n")
    print(_input_table(results))
    print(f"written to {comparison.out.path}")


def _training_pictures(comparison: networks.Comparison, count: int) -> data.Dataset:
    given = flags.FLAGS
    name = comparison.examples.name
    for network in comparison.networks:
        used = network.config.train_examples
        if network.config.dataset == name and used is not None and used < count:
            raise ValueError(
                f"train_examples is {count}; {network.name} was trained on {used}."
            )
    # What a run was trained on begins with these.
    pictures = data.load(
        name,
        split="train",
        data_dir=given.data_dir,
        download=given.download,
        limit=count,
        image_size=training.image_size(comparison.networks[0].config, name),
    )
    if len(pictures) < count:
        raise ValueError(f"train_examples is {count}; {name} has {len(pictures)}.")
    return pictures


def _inputs(network: networks.NamedNetwork, examples: data.Dataset) -> dict[str, Any]:
    """Summaries of each quantity over the examples, and how sure the Hessians are."""
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
    quantities = (*curvature_figures.QUANTITIES, "smallest")
    return {name: _distribution(values[name]) for name in quantities} | {
        "curved": float(found.curved.mean()),
        "eigenvalue_error": _mean_and_maximum(found.error),
        "trace_error": _mean_and_maximum(found.trace_error),
    }


def _distribution(values: np.ndarray) -> dict[str, Any]:
    return {
        **networks.averaged(values),
        "median": float(np.median(values)),
        "maximum": float(values.max()),
        "percentiles": np.percentile(values, np.arange(101)).tolist(),
    }


def _mean_and_maximum(values: np.ndarray) -> dict[str, float]:
    return {"mean": float(values.mean()), "maximum": float(values.max())}


def _parameters(
    network: networks.NamedNetwork, pictures: data.Dataset, matrix: str
) -> analysis.ParameterSpectrum:
    with runs.Progress(
        _PROBES.value,
        description=f"{network.name}: {matrix.replace('_', '-')}",
        examples=flags.FLAGS.num_steps * len(pictures),
        unit="probe",
    ) as progress:
        return analysis.parameter_spectrum(
            network.f,
            pictures.images,
            pictures.labels,
            matrix=matrix,
            num_steps=flags.FLAGS.num_steps,
            num_probes=_PROBES.value,
            batch_size=flags.FLAGS.batch_size,
            key=jax.random.key(flags.FLAGS.seed),
            on_progress=lambda part: progress.update(round(part * _PROBES.value)),
        )


def _densities(
    spectra: dict[str, analysis.ParameterSpectrum],
) -> dict[str, dict[str, Any]]:
    """Curves on one grid, blurred alike."""
    nodes = np.concatenate([found.density.nodes.ravel() for found in spectra.values()])
    scale = _SCALE * float(np.abs(nodes).max()) or 1.0
    ends = np.arcsinh([nodes.min() / scale, nodes.max() / scale])
    grid = np.linspace(ends[0] - 4 * _WIDTH, ends[1] + 4 * _WIDTH, _POINTS)
    curves = {}
    for name, found in spectra.items():
        density = _density(found.density, scale, grid)
        curves[name] = {
            "scale": scale,
            "width": _WIDTH,
            "asinh": grid.tolist(),
            "mean": density.mean[0].tolist(),
            "standard_error": density.standard_error[0].tolist(),
        }
    return curves


@jax.jit
def _density(found: linalg.SpectralDensity, scale: Any, grid: Any) -> linalg.Estimate:
    nodes = jnp.arcsinh(found.nodes / scale)
    return linalg.SpectralDensity(nodes, found.weights).at(grid, _WIDTH)


def _summary(found: analysis.ParameterSpectrum) -> dict[str, Any]:
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


def _parameter_table(results: dict[str, Any]) -> str:
    return cli.table(
        [
            {
                "network": spectrum_figures.label(name),
                "matrix": curvature_figures.MATRICES[matrix],
                "largest eigenvalue": _within(found[matrix]["largest"]),
                "smallest": _within(found[matrix]["smallest"]),
                "trace": _with_error(found[matrix]["trace"]),
            }
            for name, found in results["networks"].items()
            for matrix in analysis.curvature.MATRICES
        ]
    )


def _input_table(results: dict[str, Any]) -> str:
    rows = []
    for name, network in results["networks"].items():
        inputs = network["inputs"]
        row = {"network": spectrum_figures.label(name)}
        for quantity, meaning in curvature_figures.QUANTITIES.items():
            found = inputs[quantity]
            row[f"{meaning}: mean"] = _with_error(found)
            if quantity == "largest":
                row["median"] = f"{found['median']:.3g}"
                row["maximum"] = f"{found['maximum']:.3g}"
        row["smallest eigenvalue: mean"] = _with_error(inputs["smallest"])
        row["Hessian"] = _accuracy(inputs)
        rows.append(row)
    return cli.table(rows)


def _accuracy(inputs: dict[str, Any]) -> str:
    """How the Hessians in the input were found, and how sure they are."""
    if not inputs["curved"]:
        return "exact: piecewise linear"
    return (
        f"not piecewise linear at {inputs['curved']:.1%}: eigenvalues within "
        f"{inputs['eigenvalue_error']['maximum']:.1g}, standard error of a trace "
        f"{inputs['trace_error']['mean']:.1g}"
    )


def _within(end: dict[str, float]) -> str:
    return f"{end['value']:.4g} ± {end['error']:.1g}"


def _with_error(found: dict[str, float]) -> str:
    return f"{found['mean']:.3g} ± {found['standard_error']:.2g}"


if __name__ == "__main__":
    cli.run(main)
