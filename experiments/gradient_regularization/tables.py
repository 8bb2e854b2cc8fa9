"""The tables of experiments.gradient_regularization, as Markdown."""

import math
from collections.abc import Callable, Mapping, Sequence

from experiments.common import tables
from experiments.common.records import Record
from experiments.common.tables import Column
from experiments.gradient_regularization.paper import Printed

_MARGINS = {"soft": "SoftCW", "log_sum_exp": "log-sum-exp", "margin": "margin"}
_KINDS = {"signed": "signed", "absolute": "modulus"}
_NAMED = (
    Column("model", "label"),
    Column("smooth", lambda row: "yes" if row["smooth"] else ""),
)
_PERCENT = tables.percent(missing="")
_NUMBER = tables.number(missing="")


def text(results: Record) -> str:
    """Returns all tables, each network beside its row of the paper.

    Args:
      results: the content of results.json.
    """
    paper, networks = results["paper"], results["networks"]
    printed = {}
    if paper is not None:
        printed = {row[0]: Printed(*row)._asdict() for row in paper["rows"]}
    rows = [row | {"paper": printed.get(name)} for name, row in networks.items()]
    sections = [
        _introduction(results),
        "## Errors and distances",
        tables.table(rows, _error_columns(results)),
        "## Bounds on the distance, and how often an attack came nearer",
        "Means over the attacked images. L and C are the largest slope and curvature "
        f"at any of the {results['test_examples']} test images, not at all points, so "
        "that the bounds are no certificates: 'nearer' is the part of the attacked "
        "images for which a misclassified point is known that is nearer than promised, "
        "be it the image itself.",
        tables.table(rows, _bound_columns(results)),
        "## Regularity of the margin",
        "Norm of the gradient of the margin (Carlini-Wagner's loss of probabilities) "
        f"dual to {results['norm']}, and where the network is smooth the largest "
        "eigenvalue of the Hessian of what stands for it, with its sign and in "
        f"modulus: mean and largest over the {results['test_examples']} test images.",
        tables.table(rows, _regularity_columns(results)),
        "## Which attack found the nearest point",
        "Part of the attacked images that the network gets right for which the attack "
        "found a point, and for which it was the first to find the nearest of all. "
        "Boundary and LogBarrier begin at the nearest point of those before them.",
        tables.table(rows, _attack_columns(results)),
    ]
    return "\n\n".join(sections) + "\n"


def _introduction(results: Record) -> str:
    """The data, the meaning of the columns, and the attacks."""
    count, later = results["examples"], results.get("summary_revision")
    top = "" if results["top_k"] == 1 else f", top-{results['top_k']} error"
    seeds = max(len(row["seeds"]) for row in results["networks"].values())
    several = (
        "Means over the seeds, with the standard deviation over them, and each seed's "
        "value in brackets; "
    )
    paragraphs = [
        f"# Gradient regularisation, {results['norm']}",
        f"{results['data']}{top}. Errors, distances and bounds are of the same {count} "
        f"test images, which all networks were attacked at; slopes and curvatures were "
        f"measured at {results['test_examples']} test images, these among them. "
        f"Distances are in [0, 1] pixel units. Revision {results['git_revision']}"
        + (f", summed up at revision {later}." if later else "."),
        (several if seeds > 1 else "One seed; ")
        + "the column 'standard error' is that of the mean distance over images, of "
        "which a wrong one counts as at distance 0, and one that no attack broke as at "
        f"{results['largest']:g}. The standard error of an error over {count} images "
        f"is up to {50 / math.sqrt(count):.1f} points.",
        "The ratio is the relative gain in mean distance over the relative rise of the "
        "clean error, both against the undefended network; its error is the jackknife's"
        " standard error over images, and infinite where the clean error would not "
        "change without one of them. Where the clean error changes little, the ratio "
        "divides by noise and says nothing; a seed has none where nothing changes.",
        f"Nearest points by {', '.join(results['attacks'])}.",
    ]
    if results["paper"] is not None:
        paragraphs.append(
            "Columns that begin with 'paper:' are not of this run but of "
            f"{results['paper']['setting']}."
        )
    return "\n\n".join(paragraphs)


def _error_columns(results: Record) -> list[Column]:
    digits = 3 if results["norm"] == "L2" else 4
    columns = [
        *_NAMED,
        Column("clean error", _seeds("clean_error", digits=1, times=100, unit=" %")),
        *(
            Column(
                f"error at {_length(epsilon)}",
                _mean("error_at", f"{epsilon:g}", digits=1, times=100, unit=" %"),
            )
            for epsilon in results["epsilons"]
        ),
        Column("mean distance", _seeds("distance", digits=digits)),
        Column(
            "standard error",
            ("mean", "standard_error"),
            tables.number(f"{{:.{digits}f}}"),
        ),
        Column("unbroken", ("mean", "unbroken"), _PERCENT),
        Column("ratio", _ratio),
        Column("training", _training_seconds, tables.number("{:.0f} s", missing="")),
    ]
    if results["paper"] is None:
        return columns
    error = tables.percent("{:.2f}", missing="")
    return [
        *columns,
        Column("paper: clean error", ("paper", "clean_error"), error),
        *(
            Column(
                f"paper: error at {_length(epsilon)}",
                ("paper", "error_at", place),
                error,
            )
            for place, epsilon in enumerate(results["paper"]["epsilons"])
        ),
        Column("paper: mean distance", ("paper", "distance"), _NUMBER),
        Column("paper: ratio", ("paper", "ratio"), tables.number("{:.2f}", missing="")),
        Column(
            "paper: training", ("paper", "hours"), tables.number("{:g} h", missing="")
        ),
    ]


def _bound_columns(results: Record) -> list[Column]:
    titles = {"lipschitz": "L-bound"}
    for margin, kind in _curved(results):
        titles[f"{margin}_{kind}"] = f"C-bound, {_MARGINS[margin]}, {_KINDS[kind]}"
    columns = list(_NAMED)
    for name, title in titles.items():
        place = ("mean", "bounds", name)
        columns += [
            Column(title, (*place, "mean"), _NUMBER),
            Column(f"nearer than {title}", (*place, "violations"), _PERCENT),
        ]
    if _has_bounds(results):
        columns += [
            Column("paper: L-bound", ("paper", "lipschitz"), _NUMBER),
            Column("paper: C-bound", ("paper", "curvature"), _NUMBER),
        ]
    return columns


def _regularity_columns(results: Record) -> list[Column]:
    places: dict[str, tuple[str, ...]] = {"slope": ("mean", "slope")}
    for margin, kind in _curved(results):
        title = f"{_MARGINS[margin]}, {_KINDS[kind]}"
        places[title] = ("mean", "curvature", margin, kind)
    columns = list(_NAMED)
    for title, place in places.items():
        columns += [
            Column(f"{title}: mean", (*place, "mean"), _NUMBER),
            Column(f"{title}: largest", (*place, "max"), _NUMBER),
        ]
    if _has_bounds(results):
        printed = tables.number("{:g}", missing="")
        columns += [
            Column("paper: slope, mean", ("paper", "slope", 0), printed),
            Column("paper: slope, largest", ("paper", "slope", 1), printed),
            Column("paper: Hessian, mean", ("paper", "hessian", 0), printed),
            Column("paper: Hessian, largest", ("paper", "hessian", 1), printed),
        ]
    return columns


def _attack_columns(results: Record) -> list[Column]:
    specs = {
        spec.split()[0]: spec
        for row in results["networks"].values()
        for spec in row["mean"]["attacks"]
    }
    return [
        *_NAMED,
        *(
            Column(name, ("mean", "attacks", spec), _found)
            for name, spec in specs.items()
        ),
    ]


def _found(attack: Mapping[str, float]) -> str:
    return ", ".join(_PERCENT(attack.get(part)) for part in ("found", "nearest"))


def _has_bounds(results: Record) -> bool:
    """Whether the paper's bounds and slopes, which are of L2, can be compared."""
    return results["paper"] is not None and results["norm"] == "L2"


def _curved(results: Record) -> list[tuple[str, str]]:
    """The margins whose curvature some network has, with signs and without."""
    margins = dict.fromkeys(
        margin
        for row in results["networks"].values()
        for margin in row["mean"]["curvature"]
    )
    return [(margin, kind) for margin in margins for kind in _KINDS]


def _mean(
    *path: str, digits: int, times: float = 1, unit: str = ""
) -> Callable[[tables.Row], str]:
    """Returns text of a mean over seeds, with the deviation of several seeds."""
    form = tables.with_error(f"{{:.{digits}f}}", times=times, unit=unit, alone=True)

    def value(row: tables.Row) -> str:
        pair = (tables.find(row, (part, *path)) for part in ("mean", "spread"))
        return form(tuple(pair))

    return value


def _seeds(
    name: str, *, digits: int, times: float = 1, unit: str = ""
) -> Callable[[tables.Row], str]:
    """Returns :func:`_mean` with the value of each seed in brackets."""
    mean = _mean(name, digits=digits, times=times, unit=unit)
    each = tables.several(tables.number(f"{{:.{digits}f}}", times=times))

    def value(row: tables.Row) -> str:
        if row["spread"] is None:
            return mean(row)
        return f"{mean(row)} ({each([one[name] for one in row['seeds']])})"

    return value


def _ratio(row: tables.Row) -> str:
    """The ratio with its error, and that of each seed."""
    form = tables.with_error("{:.2f}", alone=True, missing="")
    shown = form((row["ratio"], row["ratio_error"]))
    if row["ratio"] is None or len(row["ratios"]) < 2:
        return shown
    each = tables.several(tables.number("{:.2f}", missing="none"))
    return f"{shown} ({each(row['ratios'])})"


def _training_seconds(row: tables.Row) -> float | None:
    """The mean over the networks whose training was timed."""
    seconds: Sequence[float | None] = [one["training_seconds"] for one in row["seeds"]]
    timed = [value for value in seconds if value is not None]
    return sum(timed) / len(timed) if timed else None


def _length(epsilon: float) -> str:
    levels = epsilon * 255
    whole = abs(levels - round(levels)) < 1e-6
    return f"{round(levels)}/255" if whole else f"{epsilon:g}"
