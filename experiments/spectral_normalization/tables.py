"""The tables of experiments.spectral_normalization, as Markdown."""

import math
from collections.abc import Mapping
from typing import Any

from experiments.common import tables
from experiments.common.records import Record
from experiments.common.tables import Column
from experiments.spectral_normalization import averages
from experiments.spectral_normalization.networks import CONTROLS, WITHOUT
from opnorm import papers, training

LABELS = {
    "normalize": "layer's norm",
    "normalize_kernels": "kernel matrix's norm",
    "clip": "clipped",
    "clip_once": "clipped once",
}
assert LABELS.keys() == training.SPECTRAL_NORM_METHODS.keys()
CONTROL_LABELS = {
    "batch_norm": "BatchNorm",
    "dropout": "dropout",
    "no_lrn": "no LRN",
    "weight_decay": "weight decay",
}
assert CONTROL_LABELS.keys() == CONTROLS.keys()
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
        _introduction(results),
        f"Accuracies are those under the attack trained with. {_errors(results)} Time "
        "is that of a train step over one without a bound, rough. The paper's columns "
        "are of its own sizes: up to 200 epochs on all of the data set; its time is "
        "that of 40 epochs (Table 2).",
        tables.table(
            [
                _compared(name, scheme, method)
                for name, scheme in schemes.items()
                for method in results["methods"]
            ],
            _SCHEMES,
        ),
        *_ways(results),
        *_step_times(results),
        "## All networks",
        "Largest norm: of a layer as a map, as deployed, and of a layer's kernel "
        "matrix. Output per input: the ratio of the norms of the logits and of the "
        "input of the first layer, median over the test images. Units of margins, as "
        "log10: the square root of the scheme's capacity norm, and the number that the "
        "released code divides by.",
        tables.table(
            [
                {"scheme": label(name), **network}
                for name, scheme in schemes.items()
                for network in scheme["networks"].values()
            ],
            _NETWORKS,
        ),
    ]
    rows = [
        {"scheme": label(name), **network}
        for name in schemes
        for network in random_labels(results, name).values()
    ]
    if rows:
        sections += ["## Random training labels", tables.table(rows, _NETWORKS)]
    return "\n\n".join([*sections, *_missing(results)]) + "\n"


def _introduction(results: Record) -> str:
    """Returns the data, the choice of the bound and the revision."""
    count = results["validation_examples"]
    if results.get("validation_fraction"):
        chosen = (
            f"{count} images held out of the training, reported on "
            f"{results['test_examples']} test images"
        )
    else:
        chosen = f"{count} test images, reported on {results['test_examples']} others"
    return (
        f"{results['data']}; {results['network']}; {results['train_examples']} "
        f"training images, {results['train_measured']} of them measured; the bound "
        f"beta chosen by {chosen}. Revision {results['git_revision']}."
    )


def _errors(results: Record) -> str:
    """Returns the sentence on standard errors."""
    seeds = results.get("seeds", [0])
    if len(seeds) == 1:
        return (
            "Standard errors are over the images of one network; the gain is that of "
            "the test accuracy, its standard error that of the differences by image."
        )
    return (
        f"Means and standard errors are over networks of the seeds "
        f"{', '.join(map(str, seeds))}, as many as the column networks says; the gain "
        "is that of the test accuracy, its standard error that of the differences by "
        'seed. "-" stands for what is missing.'
    )


def _ways(results: Record) -> list[str]:
    """Returns the section on other ways to regularise, the paper's Figs. 10 and 11."""
    rows = [
        {
            "scheme": label(name),
            "way": way,
            **network,
            "gain": None
            if way == "none"
            else averages.gain(scheme["networks"][WITHOUT], network),
            "paper": _printed(name, network),
        }
        for name, scheme in results["schemes"].items()
        for way, network in ways(results, scheme).items()
    ]
    if len(rows) <= 2 * len(results["schemes"]):
        return []
    return [
        "## Other ways to regularise",
        "Bounds are the best ones by validation. The gain is that of the test accuracy "
        "over the network without a bound. The paper's columns are the ends of the "
        "curves in its Figs. 10 and 11.",
        tables.table(rows, _WAYS),
    ]


def ways(results: Record, scheme: Mapping[str, Any]) -> dict[str, Record]:
    """Returns the networks of a scheme by the way in which they are regularised.

    Args:
      results: the content of results.json.
      scheme: one of its schemes.
    """
    networks = scheme["networks"]
    found = {"none": networks[WITHOUT]}
    for method in results["methods"]:
        if scheme["best_bounded"][method] is not None:
            best = networks[scheme["best_bounded"][method]]
            found[f"{LABELS[method]}, beta {bound_label(best)}"] = best
    for name in results.get("controls", []):
        found[CONTROL_LABELS[name]] = networks[name]
    return found


def _printed(name: str, network: Mapping[str, Any]) -> Record | None:
    """Returns the accuracies that the paper's Figs. 10 and 11 show of a network."""
    row = training.get_preset(name).row(papers.farnia.Accuracy)
    if row is None:
        return None
    rows = papers.farnia.FIGURE_11.select(
        dataset=row.dataset,
        architecture=row.architecture,
        scheme=row.scheme,
        regularization=network["method"] or "none",
    )
    return rows[0]._asdict() if rows else None


def _step_times(results: Record) -> list[str]:
    """Returns the section on the two ways to bound, the paper's Table 3."""
    pair = ("normalize", "normalize_kernels")
    if not set(pair) <= set(results["methods"]):
        return []
    rows = []
    for name, scheme in results["schemes"].items():
        times, best = scheme["seconds_per_step"], scheme["best_bounded"]
        seconds = [times.get(best[kind], {}).get("seconds") for kind in pair]
        known = None not in seconds
        printed = training.get_preset(name).row(papers.farnia.RuntimeRatio)
        rows.append(
            {
                "scheme": label(name),
                "ratio": seconds[0] / seconds[1] if known else None,
                "paper": None if printed is None else printed.ratio,
            }
        )
    return [
        "## Time with the layer's norm over that with the kernel matrix's",
        "The time is that of a train step, rough; the paper's Table 3 is of 40 epochs.",
        tables.table(rows, _TIMES),
    ]


def _missing(results: Record) -> list[str]:
    """Returns the section on networks that are missing."""
    rows = [
        {"scheme": label(name), "network": title, "seed": seed, "reason": reason}
        for name, scheme in results["schemes"].items()
        for title, network in (
            *scheme["networks"].items(),
            *(
                (f"{each}, random labels", network)
                for each, network in random_labels(results, name).items()
            ),
        )
        for seed, reason in network.get("missing", {}).items()
    ]
    return ["## Missing networks", tables.table(rows, _REASONS)] if rows else []


def random_labels(results: Record, name: str) -> dict[str, Record]:
    """Returns the networks of a scheme that were trained on random labels.

    Args:
      results: the content of results.json; earlier versions have those of the first
        scheme in another place.
      name: the name of the scheme.
    """
    found: dict[str, Record] | None = results["schemes"][name].get("random_labels")
    if found is None and name == results["first"]:
        found = results.get("random_labels")
    return found or {}


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


def log_released_unit(network: Mapping[str, Any]) -> float | None:
    """Returns log10 of the unit of margins in the released code, None without one."""
    unit = network.get("log_released_unit")
    return None if unit is None else float(unit) / math.log(10)


def _compared(name: str, scheme: Mapping[str, Any], method: str) -> Record:
    """A row of the first table: a scheme without a bound, with one, and the paper's."""
    preset = training.get_preset(name)
    printed = preset.row(papers.farnia.Accuracy)
    validated = preset.row(papers.farnia.Validated)
    runtime = preset.row(papers.farnia.Runtime)
    paper = None
    if printed and validated and runtime and method == _PAPERS_METHOD:
        paper = {
            "test": printed.test,
            "bounded": printed.bounded_test,
            "gain": printed.bounded_test - printed.test,
            "beta": validated.beta,
            "time": runtime.ratio,
        }
    without = scheme["networks"][WITHOUT]
    chosen = scheme["chosen"][method]
    best = None if chosen is None else scheme["networks"][chosen]
    return {
        "scheme": label(name),
        "method": method,
        "without": without,
        "best": best,
        "gain": None if best is None else averages.gain(without, best),
        "time": scheme["seconds_per_step"]
        .get(scheme["best_bounded"][method], {})
        .get("ratio"),
        "paper": paper,
    }


def _largest(norm: str) -> Column:
    titles = {"norm": "largest norm", "kernel_matrix": "kernel matrix"}

    def largest(network: Mapping[str, Any]) -> float:
        return max(float(layer[norm]) for layer in network["layers"])

    return Column(
        titles[norm], lambda row: averages.over(row, largest), _known_error("{:.3g}")
    )


def _known_error(form: str) -> tables.Format:
    """Returns a format of a mean that is without an error for one network."""
    return tables.with_error(form, alone=True, missing="")


def _counted(row: Mapping[str, Any]) -> str:
    """The number of networks without a bound, and of those with one if it differs."""
    counts = [averages.count(row[each]) for each in ("without", "best") if row[each]]
    return " / ".join(dict.fromkeys(counts))


_ACCURACY = tables.with_error("{:.1f}", times=100, unit=" %")
_GAIN = tables.with_error("{:+.1f}", "{:.1f}")
_TWO_DIGITS = tables.number("{:.2f}", missing="")
_SCHEMES = (
    Column("scheme", "scheme"),
    Column("bound on", "method", LABELS.__getitem__),
    Column("train", ("without", "train"), _ACCURACY),
    Column("test", ("without", "test"), _ACCURACY),
    Column("beta", "best", lambda best: "-" if best is None else bound_label(best)),
    Column("train with beta", ("best", "train"), _ACCURACY),
    Column("test with beta", ("best", "test"), _ACCURACY),
    Column("gain", "gain", _GAIN),
    Column("networks", _counted),
    Column("time", "time", tables.number("{:.2f}")),
    Column("paper: test", ("paper", "test"), _TWO_DIGITS),
    Column("paper: with beta", ("paper", "bounded"), _TWO_DIGITS),
    Column("paper: gain", ("paper", "gain"), tables.number("{:+.2f}", missing="")),
    Column("paper: beta", ("paper", "beta"), tables.number("{:g}", missing="")),
    Column("paper: time", ("paper", "time"), _TWO_DIGITS),
)
_WAYS = (
    Column("scheme", "scheme"),
    Column("regularised by", "way"),
    Column("networks", averages.count),
    Column("train", "train", _ACCURACY),
    Column("validation", "validation", _ACCURACY),
    Column("test", "test", _ACCURACY),
    Column("gain", "gain", _GAIN),
    Column("paper: train", ("paper", "train"), _TWO_DIGITS),
    Column("paper: validation", ("paper", "validation"), _TWO_DIGITS),
)
_TIMES = (
    Column("scheme", "scheme"),
    Column("time", "ratio", tables.number("{:.2f}")),
    Column("paper: time", "paper", _TWO_DIGITS),
)
_REASONS = (
    Column("scheme", "scheme"),
    Column("network", "network"),
    Column("seed", "seed"),
    Column("reason", "reason"),
)
_NETWORKS = (
    Column("scheme", "scheme"),
    Column(
        "bound on",
        lambda row: (LABELS | CONTROL_LABELS).get(row["method"], ""),
    ),
    Column("beta", bound_label),
    Column("networks", averages.count),
    Column("train", "train", _ACCURACY),
    Column("validation", "validation", _ACCURACY),
    Column("test", "test", _ACCURACY),
    Column("clean test", "clean", _ACCURACY),
    _largest("norm"),
    _largest("kernel_matrix"),
    Column(
        "output per input",
        lambda row: averages.over(
            row, lambda each: float(each["gains"]["percentiles"][50])
        ),
        _known_error("{:.3g}"),
    ),
    Column(
        "capacity",
        lambda row: averages.over(row, log_unit),
        _known_error("{:.3g}"),
    ),
    Column(
        "released unit",
        lambda row: averages.over(row, log_released_unit),
        _known_error("{:.3g}"),
    ),
)
