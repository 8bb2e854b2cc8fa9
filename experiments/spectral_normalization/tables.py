"""experiments: the tables of experiments.spectral_normalization, as Markdown."""

import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from experiments.common import cli, records
from experiments.spectral_normalization.networks import WITHOUT
from opnorm.training import SPECTRAL_NORM_METHODS

LABELS = {
    "normalize": "layer's norm",
    "normalize_kernels": "kernel matrix's norm",
    "clip": "clipped",
}
assert LABELS.keys() == SPECTRAL_NORM_METHODS.keys()


def text(results: Mapping[str, Any]) -> str:
    """All tables, a scheme's row beside its row of the paper.

    Args:
      results: of experiments.spectral_normalization, as they are read from JSON.
    """
    schemes = results["schemes"]
    lines = [
        "# Spectral normalisation",
        "",
        f"{results['data']}; {results['network']}; {results['train_examples']} "
        f"training pictures, {results['train_measured']} of them measured; the bound "
        f"beta chosen by {results['validation_examples']} test pictures, reported on "
        f"{results['test_examples']} others. Revision {results['git_revision']}.",
        "",
        "Accuracies are those under the attack trained with, with standard errors over "
        "the pictures; the gain is that of the test accuracy, its standard error that "
        "of the pictures' differences. Time is that of a train step over one without a "
        "bound, rough. The paper's columns are of its own sizes: 200 epochs on all "
        "of the data set.",
        "",
        cli.table(
            [
                _row(name, scheme, method)
                for name, scheme in schemes.items()
                for method in results["methods"]
            ]
        ),
        "",
        "## All networks",
        "",
        "Largest norm: of a layer as a map, as deployed, and of a layer's kernel "
        "matrix. Output per input: the ratio of the norms of the logits and of what "
        "enters the first layer, median over the test pictures. Capacity: log10 of the "
        "square root of the scheme's capacity norm, the unit of margins.",
        "",
        cli.table(
            [
                _network(label(name), network)
                for name, scheme in schemes.items()
                for network in scheme["networks"].values()
            ]
        ),
    ]
    if results["random_labels"]:
        lines += [
            "",
            "## Random training labels",
            "",
            cli.table(
                [
                    _network(label(results["first"]), network)
                    for network in results["random_labels"].values()
                ]
            ),
        ]
    return "\n".join(lines) + "\n"


def label(name: str) -> str:
    """What a reader is told of a scheme, of a preset's name."""
    found = re.search(r"_(erm|wrm|[fp]gm_(?:l2|linf))$", name)
    if not found:
        return name.replace("_", " ")
    scheme, *norm = found[1].split("_")
    return " ".join([scheme.upper(), *(text.capitalize() for text in norm)])


def bound_label(network: Mapping[str, Any]) -> str:
    """The bound of a network, as text."""
    bound = float(network["bound"])
    return "none" if math.isinf(bound) else f"{bound:g}"


def log_unit(network: Mapping[str, Any]) -> float | None:
    """log10 of the square root of the capacity norm, the unit of margins."""
    capacity = network["capacity"]
    if capacity is None:
        return None
    return float(capacity["log_capacity"]) / 2 / math.log(10)


def _row(name: str, scheme: Mapping[str, Any], method: str) -> dict[str, str]:
    without = scheme["networks"][WITHOUT]
    best = scheme["networks"][scheme["chosen"][method]]
    stated = re.match(
        r"(\d\.\d+), with spectral normalisation (\d\.\d+)",
        scheme["paper"].get("accuracy", ""),
    )
    before, after = stated.groups() if stated else ("", "")
    # The paper's are of the layers' norms.
    paper = {
        "paper: test": before,
        "paper: with beta": after,
        "paper: gain": f"{float(after) - float(before):+.2f}" if stated else "",
        "paper: beta": scheme["paper"].get("beta", "").split(",")[0],
    }
    seconds = scheme["seconds_per_step"]
    if method != "normalize":
        paper = dict.fromkeys(paper, "")
    return {
        "scheme": label(name),
        "bound on": LABELS[method],
        "train": _percent(without["train"]),
        "test": _percent(without["test"]),
        "beta": bound_label(best),
        "train with beta": _percent(best["train"]),
        "test with beta": _percent(best["test"]),
        "gain": _gain(without, best),
        "time": f"{seconds[scheme['best_bounded'][method]]['ratio']:.2f}",
    } | paper


def _network(name: str, network: Mapping[str, Any]) -> dict[str, str]:
    layers = network["layers"]
    norms, matrices = (
        max(float(layer[kind]) for layer in layers)
        for kind in ("norm", "kernel_matrix")
    )
    log_root = log_unit(network)
    return {
        "scheme": name,
        "bound on": LABELS.get(network["method"], ""),
        "beta": bound_label(network),
        "train": _percent(network["train"]),
        "validation": _percent(network["validation"]),
        "test": _percent(network["test"]),
        "clean test": _percent(network["clean"]),
        "largest norm": f"{norms:.3g}",
        "kernel matrix": f"{matrices:.3g}",
        "output per input": f"{float(network['gains']['percentiles'][50]):.3g}",
        "capacity": "" if log_root is None else f"{log_root:.3g}",
    }


def _gain(without: Mapping[str, Any], best: Mapping[str, Any]) -> str:
    before, after = (
        np.array([hit == "1" for hit in network["correct"]], float)
        for network in (without, best)
    )
    found = records.mean_and_error(100 * (after - before))
    error = cli.number(found["standard_error"], "{:.1f}")
    return f"{found['mean']:+.1f} ± {error}"


def _percent(accuracy: Mapping[str, float | None]) -> str:
    mean, error = (
        cli.number(accuracy[n], "{:.1f}", times=100) for n in ("mean", "standard_error")
    )
    return f"{mean} ± {error} %"
