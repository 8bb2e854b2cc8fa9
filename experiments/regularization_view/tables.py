"""The tables of experiments.regularization_view, as Markdown.

Every table of the paper has the paper's rows and those of the networks here, one below
the other. A printed row without a network here is there too, as missing.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from experiments.common import tables
from experiments.common.records import Record
from experiments.common.tables import Column, Format
from experiments.regularization_view.networks import FGSM, PGD, STANDARD
from opnorm import papers

view = papers.regularization_view
CLAIMS = {
    "loss_gap": "The loss gap falls with the strength of the attack in training.",
    "test_error": "The test error rises with the strength.",
    "robustness": "The PGD accuracy of the correct test images rises with the "
    "strength.",
    "margins": "Margins of test images concentrate around 0: their standard deviation "
    "and mean modulus fall with the strength.",
    "layers": "Standard deviations of singular values fall in most layers from the "
    "weakest attack to the strongest, and by more than they rise in the others.",
    "variation": "The loss variation falls with the strength.",
    "fgsm": "Training with FGSM acts like training with PGD, in the loss gap, the test "
    "error, the margins and the singular values.",
    "clipping": "The error gap rises with the strength without clipping and falls with "
    "the tightest clipping.",
}
ARCHITECTURES = {
    "resnet56": "ResNet-56",
    "resnet110": "ResNet-110",
    "wrn50_2": "WRN-50-2",
}
DATASETS = {
    "cifar10": "CIFAR-10",
    "cifar100": "CIFAR-100",
    "tiny_imagenet": "Tiny-ImageNet",
}
QUANTITIES = {
    "loss_gap": "loss gap",
    "test_error": "test error",
    "conditional": "accuracy under PGD",
    "margin_std": "standard deviation of the margins",
    "margin_modulus": "mean modulus of the margins",
    "error_gap": "error gap",
}
_UNITS = {"pixels": "pixels in [0, 1]", "standardized": "standardised pixels"}
_ATTACKS = {STANDARD: "no attack", PGD: "PGD", FGSM: "FGSM"}
_PERCENTS = ("test_error", "conditional", "error_gap")
_HERE, _PAPER = "here", "paper"
# Columns of Tables 2 to 6: title, field of the paper, quantity here, whether a percent.
_COLUMNS = (
    ("train acc.", "train_accuracy", "train_accuracy", True),
    ("test acc.", "test_accuracy", "test_accuracy", True),
    ("acc. gap", "accuracy_gap", "error_gap", True),
    ("train loss", "train_loss", "train_loss", False),
    ("test loss", "test_loss", "test_loss", False),
    ("loss gap", "loss_gap", "loss_gap", False),
    ("PGD of correct", "robust", "conditional", True),
)


class _Printed(NamedTuple):
    """A table of the paper and the networks that it has.

    Attributes:
      title: its head.
      rows: its rows.
      datasets: its data sets.
      attack: of its networks.
      clipped: whether it has clipped networks.
    """

    title: str
    rows: Sequence[Any]
    datasets: tuple[str, ...]
    attack: str = PGD
    clipped: bool = False


_PRINTED = (
    _Printed(
        "Table 2: training with FGSM",
        view.TABLE_2.rows,
        ("cifar10", "cifar100"),
        attack=FGSM,
    ),
    _Printed("Table 3: CIFAR-10", view.TABLE_3.rows, ("cifar10",)),
    _Printed("Table 4: CIFAR-100", view.TABLE_4.rows, ("cifar100",)),
    _Printed("Table 5: Tiny-ImageNet", view.TABLE_5.rows, ("tiny_imagenet",)),
    _Printed(
        "Table 6: clipped spectral norms",
        view.TABLE_6.rows,
        ("cifar10",),
        clipped=True,
    ),
)


def text(results: Record) -> str:
    """Returns all tables.

    Args:
      results: the content of results.json.
    """
    sections = [
        "# Regularisation view of adversarial robustness",
        _introduction(results),
        "## Claims",
        "A quantity falls or rises if its mean does from each strength to the next, "
        "and its change from the weakest to the strongest exceeds two standard errors "
        "over networks, where each strength has several. Strength 0 is training "
        "without an attack. In brackets: the mean at each strength ± its standard "
        "error.",
        tables.table(results["claims"], _claim_columns(results)),
        "## Table 1: loss variation",
        "Largest rise of the cross-entropy under an attack: mean and standard "
        "deviation over the test images. The paper's values are small for a "
        "cross-entropy; they may be of probabilities.",
        _variation(results),
    ]
    for printed in _PRINTED:
        sections += [f"## {printed.title}", _generalization(results, printed)]
    others = _others(results)
    if others:
        sections += [
            "## Networks and data that the paper does not have",
            tables.table(others, _generalization_columns(clipped=True)),
        ]
    sections += [
        "## Appendix B.2: standard deviations of singular values",
        "Sums over the convolutional layers of the falls and of the rises from one "
        "strength to another, and the numbers of layers. 'operator': the periodic "
        "convolution on its images; 'kernel': the kernel matrix. The paper does not "
        "state the form; its second sum for CIFAR-100 repeats that for CIFAR-10 and "
        "does not fit its mean.",
        tables.table(_changes(results), _CHANGES),
        "## Theorem 4.1: a diagnostic, no bound",
        _theorem_text(results),
        tables.table(results["rows"], _theorem_columns(results)),
    ]
    return "\n\n".join(sections) + "\n"


def _theorem_text(results: Record) -> str:
    return (
        "The gap is that of the ramp risk on clean images at the margin 1 (logits). "
        "u_min is the product of the three columns before it: the least distance to "
        "the boundary (L2, pixels in [0, 1]) of "
        f"{results['settings']['boundary_examples']} training images without the balls "
        "about them, so that it is at least the paper's v_min; the product of the "
        "layers' smallest singular values; and the least distance of two rows of the "
        "last layer. u_min bounds nothing: the step of the proof that multiplies "
        "smallest singular values (Eq. 14) is false in general, residual networks are "
        "no chains, and a layer without full rank makes u_min zero. The covering "
        "number is that of the box of pixels in Linf at the strength of the training. "
        "All columns but the gap are logarithms to base 10; the bound says something "
        "where its logarithm is below 0."
    )


def _theorem_columns(results: Record) -> tuple[Column, ...]:
    named = (Column("networks of", "recipe"),) if len(results["recipes"]) > 1 else ()
    digits = tables.with_error("{:.2f}", times=1 / math.log(10), alone=True)
    return (
        *named,
        Column("attack", "attack", _ATTACKS.__getitem__),
        Column("clip", "clip", clip_label),
        Column("strength", "level", tables.number("{:g}")),
        Column("networks", lambda row: len(row["networks"])),
        Column("gap of ramp risk", ("mean", "ramp_gap"), _form(False)),
        Column("distance", ("mean", "log_v_min"), digits),
        Column("smallest singular values", ("mean", "log_sigma_product"), digits),
        Column("rows apart", ("mean", "log_separation"), digits),
        Column("u_min", ("mean", "log_u_min"), digits),
        Column("covering term", ("mean", "log_covering_term"), digits),
        Column("bound", ("mean", "log_bound"), digits),
        Column("spectral complexity", ("mean", "log_complexity"), digits),
    )


def _introduction(results: Record) -> str:
    lines = []
    for name, recipe in results["recipes"].items():
        label = f"{name}: " if name else ""
        lines.append(
            f"{label}{recipe['title']}; {recipe['data']}; trained on "
            f"{recipe['train_examples']} images, measured on "
            f"{recipe['train_measured']} training and {recipe['test_examples']} test "
            "images."
        )
    settings = results["settings"]
    lines.append(
        f"Strengths are lengths in levels of 255 of {_UNITS[settings['unit']]}, in "
        f"Linf. PGD in measurements has length {settings['level']:g} and "
        f"{settings['num_steps']} steps of 2. Values are means over networks that "
        "differ in seed ± standard errors over them, which a single network does not "
        "have. Rows 'paper' are the paper's, of its own sizes and single networks. "
        f"Revision {results['git_revision']}."
    )
    return "\n\n".join(lines)


def _claim_columns(results: Record) -> tuple[Column, ...]:
    columns = (
        Column("claim", "claim", CLAIMS.__getitem__),
        Column("verdict", "verdict"),
        Column("networks", "networks"),
        Column("numbers", "parts", lambda parts: "; ".join(map(_numbers, parts))),
    )
    if len(results["recipes"]) == 1:
        return columns
    return (Column("networks of", "recipe"), *columns)


def _numbers(part: Mapping[str, Any]) -> str:
    """The numbers that decide a part of a claim."""
    clip = "" if part.get("clip") is None else f", {clip_label(part['clip'])}"
    if part["quantity"] == "layers":
        return (
            f"{_ATTACKS[part['attack']]} {part['from']:g} to {part['to']:g}: falls of "
            f"{part['fall']:.3g} in {part['num_fallen']} layers, rises of "
            f"{part['rise']:.3g} in {part['num_risen']}"
        )
    percent = part["quantity"] in _PERCENTS
    each = _form(percent)
    values = ", ".join(
        f"{level:g}: {each(pair)}"
        for level, *pair in zip(
            part["levels"], part["mean"], part["standard_error"], strict=True
        )
    )
    unit = " in %" if percent else ""
    course = {1: "rises", -1: "falls", 0: "has no trend"}[part["direction"]]
    return (
        f"{_ATTACKS[part['attack']]}{clip}: {quantity_label(part['quantity'])}{unit} "
        f"{course} ({values})"
    )


def quantity_label(name: str) -> str:
    """Returns the name of a quantity for readers."""
    if name.startswith("variation_"):
        return f"loss variation at {name.removeprefix('variation_')}"
    return QUANTITIES[name]


def clip_label(clip: str | None) -> str:
    """Returns a clip for readers, such as "clipped to 3"."""
    if clip is None:
        return "not clipped"
    once = "clip_once"
    if clip.startswith(once):
        return f"clipped once to {clip.removeprefix(once)}"
    return f"clipped to {clip.removeprefix('clip')}"


def architecture_label(recipe: Mapping[str, Any]) -> str:
    """Returns the paper's name of a network, or its name here where it has none."""
    name = recipe["architecture"]
    return ARCHITECTURES[name] if name else str(recipe["title"]).split(",")[0]


def printed_variation(dataset: str | None, **columns: Any) -> Sequence[Any]:
    """Returns rows of the paper's Table 1."""
    return view.TABLE_1.select(dataset=dataset, **columns)


def _variation(results: Record) -> str:
    """Table 1, for each data set and length of the attack a block of strengths."""
    rows: list[Record] = []
    lengths = results["settings"]["variation_levels"]
    for dataset in ("cifar10", "cifar100"):
        own = _own(results, (dataset,), PGD, clipped=False)
        printed = {
            (row.attacked_with, row.trained_with): row
            for row in printed_variation(dataset)
        }
        cases = {(length, row["level"]) for length in lengths for row in own}
        for length, level in sorted(cases | set(printed)):
            named = {"data": DATASETS[dataset], "length": length, "level": level}
            paper = printed.get((length, level))
            if paper:
                rows.append(
                    named
                    | {"source": _PAPER, "architecture": ARCHITECTURES["resnet56"]}
                    | {"mean": (paper.mean, None)}
                    | {"std": (paper.standard_deviation, None)}
                )
            here = [row for row in own if row["level"] == level]
            rows += [
                {
                    **named,
                    **_here(results, row),
                    "mean": row["mean"].get(f"variation_{length:g}"),
                    "std": row["mean"].get(f"variation_std_{length:g}"),
                }
                for row in here
            ] or [named | _absent(ARCHITECTURES["resnet56"])]
    return tables.table(rows, _VARIATION)


def _generalization(results: Record, printed: _Printed) -> str:
    """One of Tables 2 to 6."""
    own = _own(results, printed.datasets, printed.attack, clipped=printed.clipped)
    papers = {
        (row.dataset, ARCHITECTURES[row.architecture], row.bound, row.trained_with): row
        for row in printed.rows
    }
    heres: dict[tuple[Any, ...], list[Record]] = {}
    for row in own:
        recipe = results["recipes"][row["recipe"]]
        place = (
            recipe["dataset"],
            architecture_label(recipe),
            row["bound"],
            row["level"],
        )
        heres.setdefault(place, []).append(row)
    rows: list[Record] = []
    for place in sorted({*papers, *heres}, key=_sort_key):
        dataset, architecture, bound, level = place
        named = {"data": DATASETS[dataset], "bound": bound, "level": level}
        if place in papers:
            row = papers[place]
            values = {field: (getattr(row, field), None) for _, field, _, _ in _COLUMNS}
            absolute = row.robust and row.robust * row.test_accuracy
            rows.append(
                named
                | {"source": _PAPER, "architecture": architecture}
                | values
                | {"absolute": (absolute, None)}
            )
        rows += [
            named | _here(results, row) | _values(row) for row in heres.get(place, [])
        ] or [named | _absent(architecture)]
    return tables.table(
        rows,
        _generalization_columns(
            clipped=printed.clipped, named=len(printed.datasets) > 1
        ),
    )


def _others(results: Record) -> list[Record]:
    """Rows of data sets that no table of the paper has."""
    return [
        {
            "data": results["recipes"][row["recipe"]]["data"],
            "bound": row["bound"],
            "level": row["level"],
            **_here(results, row),
            **_values(row),
        }
        for row in results["rows"]
        if results["recipes"][row["recipe"]]["dataset"] is None
    ]


def _own(
    results: Record, datasets: Sequence[str], attack: str, *, clipped: bool
) -> list[Record]:
    """The rows of networks here that a table of the paper has a place for."""
    return [
        row
        for row in results["rows"]
        if results["recipes"][row["recipe"]]["dataset"] in datasets
        and row["attack"] in (attack, STANDARD)
        and (clipped or row["clip"] is None)
    ]


def _here(results: Record, row: Mapping[str, Any]) -> Record:
    """The names of networks here."""
    source = _HERE
    if row["recipe"]:
        source += f", {row['recipe']}"
    if row["clipping"] == "clip_once":
        source += ", clipped once"
    return {
        "source": source,
        "architecture": architecture_label(results["recipes"][row["recipe"]]),
        "attack": _ATTACKS[row["attack"]],
        "networks": len(row["networks"]),
    }


def _absent(architecture: str) -> Record:
    """A row of the paper that no network here stands beside."""
    return {"source": f"{_HERE}: missing", "architecture": architecture, "networks": 0}


def _values(row: Mapping[str, Any]) -> Record:
    means = row["mean"]
    found = {field: means[name] for _, field, name, _ in _COLUMNS}
    return found | {"absolute": means["robust"]}


def _sort_key(place: tuple[Any, ...]) -> tuple[Any, ...]:
    dataset, architecture, bound, level = place
    known = list(ARCHITECTURES.values())
    order = known.index(architecture) if architecture in known else len(known)
    # No bound comes last, as in the paper.
    return dataset, order, architecture, bound is None, bound or 0.0, level


def _changes(results: Record) -> list[Record]:
    """The sums of Appendix B.2, the paper's first."""
    printed = [
        {
            "source": f"{_PAPER}, {DATASETS[row.dataset]}",
            "attack": PGD,
            "from": row.first,
            "to": row.second,
            **row._asdict(),
        }
        for row in view.APPENDIX_B_2.rows
    ]
    return [
        *printed,
        *(
            {"source": ", ".join([_HERE, *filter(None, [change["recipe"]])]), **change}
            for change in results["changes"]
        ),
    ]


def _form(percent: bool, digits: int = 3) -> Format:
    if percent:
        return tables.with_error("{:.1f}", times=100, alone=True)
    return tables.with_error(f"{{:.{digits}f}}", alone=True)


def _cell(percent: bool, digits: int = 3) -> Format:
    """The format of values here and of those of the paper, which have no error."""
    here = _form(percent, digits)
    paper = tables.number(f"{{:.{digits}f}}")
    if percent:
        paper = tables.number("{:.2f}", times=100)

    def form(value: Any) -> str:
        # The paper's values are pairs.
        return paper(value[0]) if isinstance(value, tuple) else here(value)

    return form


def _generalization_columns(*, clipped: bool, named: bool = False) -> list[Column]:
    columns = [Column("data", "data")] if named else []
    columns += [
        Column("network", "architecture"),
        *([Column("norms up to", "bound", _bound)] if clipped else []),
        Column("strength", "level", tables.number("{:g}")),
        Column("source", "source"),
        Column("networks", "networks", tables.number("{:d}", missing="")),
    ]
    columns += [
        Column(f"{title}, %" if percent else title, field, _cell(percent))
        for title, field, _, percent in _COLUMNS
    ]
    return [*columns, Column("PGD of all, %", "absolute", _cell(True))]


def _bound(value: Any) -> str:
    return "no bound" if value is None else f"{value:g}"


_VARIATION = (
    Column("data", "data"),
    Column("network", "architecture"),
    Column("attacked with", "length", tables.number("{:g}")),
    Column("trained with", "level", tables.number("{:g}")),
    Column("source", "source"),
    Column("networks", "networks", tables.number("{:d}", missing="")),
    Column("mean", "mean", _cell(False, 4)),
    Column("standard deviation", "std", _cell(False, 4)),
)
_CHANGES = (
    Column("source", "source"),
    Column("attack", "attack", _ATTACKS.__getitem__),
    Column("from", "from", tables.number("{:g}")),
    Column("to", "to", tables.number("{:g}")),
    Column("form", "form", lambda form: form or tables.MISSING),
    Column("sum of falls", "fall", tables.number("{:.4f}")),
    Column("layers", "num_fallen", tables.number("{:d}")),
    Column("sum of rises", "rise", tables.number("{:.4f}")),
    Column("layers", "num_risen", tables.number("{:d}")),
)
