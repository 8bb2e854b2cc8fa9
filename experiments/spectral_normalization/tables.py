"""The tables of experiments.spectral_normalization, as Markdown."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from experiments.common import records, tables
from experiments.common.records import Record
from experiments.common.tables import Column
from experiments.spectral_normalization.networks import WITHOUT
from opnorm import papers, training

LABELS = {
    "normalize": "layer's norm",
    "normalize_kernels": "kernel matrix's norm",
    "clip": "clipped",
    "clip_once": "clipped once",
}
assert LABELS.keys() == training.SPECTRAL_NORM_METHODS.keys()
# The way to bound of the paper's networks.
_PAPERS_METHOD = "normalize"


def text(results: Record) -> str:
    """Returns all tables, the row of a scheme beside its row of the paper.

    Args:
      results: the content of results.json.
    """
    schemes = results["schemes"]
    sections = [
        "# Spectral normalisation",
        f"{results['data']}; {results['network']}; {results['train_examples']} "
        f"training images, {results['train_measured']} of them measured; the bound "
        f"beta chosen by {results['validation_examples']} test images, reported on "
        f"{results['test_examples']} others. Revision {results['git_revision']}.",
        "Accuracies are those under the attack trained with, with standard errors over "
        "the images; the gain is that of the test accuracy, its standard error that of "
        "the differences by image. Time is that of a train step over one without a "
        "bound, rough. The paper's columns are of its own sizes: up to 200 epochs on "
        "all of the data set.",
        tables.table(
            [
                _compared(name, scheme, method)
                for name, scheme in schemes.items()
                for method in results["methods"]
            ],
            _SCHEMES,
        ),
        "## All networks",
        "Largest norm: of a layer as a map, as deployed, and of a layer's kernel "
        "matrix. Output per input: the ratio of the norms of the logits and of the "
        "input of the first layer, median over the test images. Capacity: log10 of the "
        "square root of the scheme's capacity norm, the unit of margins.",
        tables.table(
            [
                {"scheme": label(name), **network}
                for name, scheme in schemes.items()
                for network in scheme["networks"].values()
            ],
            _NETWORKS,
        ),
    ]
    if results["random_labels"]:
        rows = [
            {"scheme": label(results["first"]), **network}
            for network in results["random_labels"].values()
        ]
        sections += ["## Random training labels", tables.table(rows, _NETWORKS)]
    return "\n\n".join(sections) + "\n"


def label(name: str) -> str:
    """Returns the name of a scheme for readers, from the name of its preset."""
    row = training.get_preset(name).row(papers.farnia.Accuracy)
    if row is None:
        return name.replace("_", " ")
    scheme, *norm = row.scheme.split("_")
    return " ".join([scheme.upper(), *(text.capitalize() for text in norm)])


def bound_label(network: Mapping[str, Any]) -> str:
    """Returns the bound of a network as text."""
    bound = float(network["bound"])
    return "none" if math.isinf(bound) else f"{bound:g}"


def log_unit(network: Mapping[str, Any]) -> float | None:
    """Returns log10 of the square root of the capacity norm, the unit of margins."""
    capacity = network["capacity"]
    if capacity is None:
        return None
    return float(capacity["log_capacity"]) / 2 / math.log(10)


def _compared(name: str, scheme: Mapping[str, Any], method: str) -> Record:
    """A row of the first table: a scheme without a bound, with one, and the paper's."""
    preset = training.get_preset(name)
    printed = preset.row(papers.farnia.Accuracy)
    validated = preset.row(papers.farnia.Validated)
    paper = None
    if printed and validated and method == _PAPERS_METHOD:
        paper = {
            "test": printed.test,
            "bounded": printed.bounded_test,
            "gain": printed.bounded_test - printed.test,
            "beta": validated.beta,
        }
    return {
        "scheme": label(name),
        "method": method,
        "without": scheme["networks"][WITHOUT],
        "best": scheme["networks"][scheme["chosen"][method]],
        "time": scheme["seconds_per_step"][scheme["best_bounded"][method]]["ratio"],
        "paper": paper,
    }


def _gain(row: tables.Row) -> Record:
    """The gain of the test accuracy, in points."""
    before, after = (
        np.array([hit == "1" for hit in row[network]["correct"]], float)
        for network in ("without", "best")
    )
    return records.mean_and_error(100 * (after - before))


def _largest(norm: str) -> Column:
    titles = {"norm": "largest norm", "kernel_matrix": "kernel matrix"}
    return Column(
        titles[norm],
        lambda row: max(float(layer[norm]) for layer in row["layers"]),
        tables.number(),
    )


_ACCURACY = tables.with_error("{:.1f}", times=100, unit=" %")
_TWO_DIGITS = tables.number("{:.2f}", missing="")
_SCHEMES = (
    Column("scheme", "scheme"),
    Column("bound on", "method", LABELS.__getitem__),
    Column("train", ("without", "train"), _ACCURACY),
    Column("test", ("without", "test"), _ACCURACY),
    Column("beta", "best", bound_label),
    Column("train with beta", ("best", "train"), _ACCURACY),
    Column("test with beta", ("best", "test"), _ACCURACY),
    Column("gain", _gain, tables.with_error("{:+.1f}", "{:.1f}")),
    Column("time", "time", tables.number("{:.2f}")),
    Column("paper: test", ("paper", "test"), _TWO_DIGITS),
    Column("paper: with beta", ("paper", "bounded"), _TWO_DIGITS),
    Column("paper: gain", ("paper", "gain"), tables.number("{:+.2f}", missing="")),
    Column("paper: beta", ("paper", "beta"), tables.number("{:g}", missing="")),
)
_NETWORKS = (
    Column("scheme", "scheme"),
    Column("bound on", lambda row: LABELS.get(row["method"], "")),
    Column("beta", bound_label),
    Column("train", "train", _ACCURACY),
    Column("validation", "validation", _ACCURACY),
    Column("test", "test", _ACCURACY),
    Column("clean test", "clean", _ACCURACY),
    _largest("norm"),
    _largest("kernel_matrix"),
    Column("output per input", ("gains", "percentiles", 50), tables.number()),
    Column("capacity", log_unit, tables.number(missing="")),
)
