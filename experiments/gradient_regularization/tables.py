"""The tables of experiments.gradient_regularization, as Markdown."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.common import cli
from experiments.gradient_regularization.paper import Row, Table, find

_MARGINS = {"soft": "SoftCW", "log_sum_exp": "log-sum-exp", "margin": "margin"}
_KINDS = {"signed": "signed", "absolute": "modulus"}


def text(results: Mapping[str, Any], paper: Table | None) -> str:
    """All tables, each network beside its row of the paper.

    Args:
      results: of experiments.gradient_regularization.
      paper: the paper's table, or None.
    """
    norm, networks = results["norm"], results["networks"]
    seeds = max(len(network["seeds"]) for network in networks.values())
    top = "" if results["top_k"] == 1 else f", top-{results['top_k']} error"
    count, later = results["examples"], results.get("summary_revision")
    lines = [
        f"# Gradient regularisation, {norm}",
        "",
        f"{results['data']}{top}. Errors, distances and bounds are of the same {count} "
        f"test images, which all networks were attacked at; slopes and curvatures were "
        f"measured at {results['test_examples']} test images, these among them. "
        f"Distances are in [0, 1] pixel units. Revision {results['git_revision']}"
        + (f", summed up at revision {later}." if later else "."),
        "",
        (
            "Means over the seeds, with the standard deviation over them, and each "
            "seed's value in brackets; "
            if seeds > 1
            else "One seed; "
        )
        + "the column 'standard error' is that of the mean distance over images, of "
        "which a wrong one counts as at distance 0, and one that no attack broke as at "
        f"{results['largest']:g}. The standard error of an error over {count} images "
        f"is up to {50 / math.sqrt(count):.1f} points.",
        "",
        "The ratio is the relative gain in mean distance over the relative rise of the "
        "clean error, both against the undefended network; its error is the jackknife's"
        " standard error over images, and infinite where the clean error would not "
        "change without one of them. Where the clean error changes little, the ratio "
        "divides by noise and says nothing; a seed has none where nothing changes.",
        "",
        f"Nearest points by {', '.join(results['attacks'])}.",
        "",
    ]
    if paper is not None:
        lines += [
            f"Columns that begin with 'paper:' are not of this run but of "
            f"{paper.setting}.",
            "",
        ]
    lines += [
        "## Errors and distances",
        "",
        cli.table(
            [
                _named(network)
                | _errors(network, results)
                | _paper_errors(name, paper, results)
                for name, network in networks.items()
            ]
        ),
        "",
        "## Bounds on the distance, and how often an attack came nearer",
        "",
        "Means over the attacked images. L and C are the largest slope and curvature "
        f"at any of the {results['test_examples']} test images, not at all points, so "
        "that the bounds are no certificates: 'nearer' is the part of the attacked "
        "images for which a misclassified point is known that is nearer than promised, "
        "be it the image itself.",
        "",
        cli.table(
            [
                _named(network)
                | _bounds(network, results)
                | _paper_bounds(name, paper, results)
                for name, network in networks.items()
            ]
        ),
        "",
        "## Regularity of the margin",
        "",
        "Norm of the gradient of the margin (Carlini-Wagner's loss of probabilities) "
        f"dual to {norm}, and where the network is smooth the largest eigenvalue of "
        "the Hessian of what stands for it, with its sign and in modulus: mean and "
        f"largest over the {results['test_examples']} test images.",
        "",
        cli.table(
            [
                _named(network)
                | _regularity(network, results)
                | _paper_regularity(name, paper, results)
                for name, network in networks.items()
            ]
        ),
        "",
        "## Which attack found the nearest point",
        "",
        "Part of the attacked images that the network gets right for which the attack "
        "found a point, and for which it was the first to find the nearest of all. "
        "Boundary and LogBarrier begin at the nearest point of those before them.",
        "",
        cli.table(
            [
                _named(network)
                | {
                    spec.split()[0]: f"{_percent(found.get('found'))}, "
                    f"{_percent(found.get('nearest'))}"
                    for spec, found in network["mean"]["attacks"].items()
                }
                for network in networks.values()
            ]
        ),
    ]
    return "\n".join(lines) + "\n"


def _named(network: Mapping[str, Any]) -> dict[str, str]:
    return {"model": network["label"], "smooth": "yes" if network["smooth"] else ""}


def _errors(network: Mapping[str, Any], results: Mapping[str, Any]) -> dict[str, str]:
    mean, spread = network["mean"], network["spread"]
    seconds = [one["training_seconds"] for one in network["seeds"]]
    timed = [value for value in seconds if value is not None]
    cells = {"clean error": _cell(network, "clean_error", 100, 1)}
    for epsilon in results["epsilons"]:
        cells[f"error at {_length(epsilon)}"] = _spread(
            mean["error_at"][f"{epsilon:g}"],
            spread and spread["error_at"][f"{epsilon:g}"],
            100,
            1,
        )
    ratio, ratios = network["ratio"], network["ratios"]
    shown = "" if ratio is None else f"{ratio:.2f}"
    if ratio is not None:
        shown += f" ± {network['ratio_error']:.2f}"
    if ratio is not None and len(ratios) > 1:
        seeds = (_number(value, ".2f") or "none" for value in ratios)
        shown += f" ({' / '.join(seeds)})"
    digits = 3 if results["norm"] == "L2" else 4
    return cells | {
        "mean distance": _cell(network, "distance", 1, digits),
        "standard error": f"{mean['standard_error']:.{digits}f}",
        "unbroken": _percent(mean["unbroken"]),
        "ratio": shown,
        "training": f"{sum(timed) / len(timed):.0f} s" if timed else "",
    }


def _bounds(network: Mapping[str, Any], results: Mapping[str, Any]) -> dict[str, str]:
    names = {"lipschitz": "L-bound"}
    for margin, kind in _curved(results):
        names[f"{margin}_{kind}"] = f"C-bound, {_MARGINS[margin]}, {_KINDS[kind]}"
    found = network["mean"]["bounds"]
    cells = {}
    for name, title in names.items():
        bound = found.get(name)
        cells[title] = "" if bound is None else f"{bound['mean']:.3g}"
        cells[f"nearer than {title}"] = (
            "" if bound is None else _percent(bound["violations"])
        )
    return cells


def _regularity(
    network: Mapping[str, Any], results: Mapping[str, Any]
) -> dict[str, str]:
    mean = network["mean"]
    cells = {
        "slope: mean": f"{mean['slope']['mean']:.3g}",
        "slope: largest": f"{mean['slope']['max']:.3g}",
    }
    for margin, kind in _curved(results):
        found = mean["curvature"].get(margin)
        for part, title in (("mean", "mean"), ("max", "largest")):
            cells[f"{_MARGINS[margin]}, {_KINDS[kind]}: {title}"] = (
                "" if found is None else f"{found[kind][part]:.3g}"
            )
    return cells


def _curved(results: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The margins whose curvature some network has, with signs and without."""
    margins = dict.fromkeys(
        margin
        for network in results["networks"].values()
        for margin in network["mean"]["curvature"]
    )
    return [(margin, kind) for margin in margins for kind in _KINDS]


def _paper_errors(
    name: str, paper: Table | None, results: Mapping[str, Any]
) -> dict[str, str]:
    if paper is None:
        return {}
    row = find(paper.rows, name)
    cells = {"paper: clean error": _percent(row and row.clean_error, 2)}
    for place, epsilon in enumerate(paper.epsilons):
        value = row.error_at[place] if row else None
        cells[f"paper: error at {_length(epsilon)}"] = _percent(value, 2)
    return cells | {
        "paper: mean distance": _number(row and row.distance),
        "paper: ratio": _number(row and row.ratio, ".2f"),
        "paper: training": f"{row.hours:g} h" if row else "",
    }


def _paper_bounds(
    name: str, paper: Table | None, results: Mapping[str, Any]
) -> dict[str, str]:
    if paper is None or results["norm"] != "L2":
        return {}
    row = find(paper.rows, name)
    return {
        "paper: L-bound": _number(row and row.lipschitz),
        "paper: C-bound": _number(row and row.curvature),
    }


def _paper_regularity(
    name: str, paper: Table | None, results: Mapping[str, Any]
) -> dict[str, str]:
    if paper is None or results["norm"] != "L2":
        return {}
    row: Row | None = find(paper.rows, name)
    slope: Sequence[float | None] = (row and row.slope) or (None, None)
    hessian: Sequence[float | None] = (row and row.hessian) or (None, None)
    return {
        "paper: slope, mean": _number(slope[0], "g"),
        "paper: slope, largest": _number(slope[1], "g"),
        "paper: Hessian, mean": _number(hessian[0], "g"),
        "paper: Hessian, largest": _number(hessian[1], "g"),
    }


def _cell(network: Mapping[str, Any], name: str, factor: float, digits: int) -> str:
    """Mean and spread, and the value of each seed."""
    spread = network["spread"]
    shown = _spread(network["mean"][name], spread and spread[name], factor, digits)
    if spread is None:
        return shown
    seeds = (f"{factor * one[name]:.{digits}f}" for one in network["seeds"])
    return f"{shown} ({' / '.join(seeds)})"


def _spread(value: float, spread: float | None, factor: float, digits: int) -> str:
    unit = " %" if factor == 100 else ""
    deviation = "" if spread is None else f" ± {factor * spread:.{digits}f}"
    return f"{factor * value:.{digits}f}{deviation}{unit}"


def _length(epsilon: float) -> str:
    pixels = epsilon * 255
    whole = abs(pixels - round(pixels)) < 1e-6
    return f"{round(pixels)}/255" if whole else f"{epsilon:g}"


def _percent(value: float | None, digits: int = 1) -> str:
    return "" if value is None else f"{100 * value:.{digits}f} %"


def _number(value: float | None, form: str = ".3g") -> str:
    return "" if value is None else f"{value:{form}}"
