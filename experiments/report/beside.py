"""Numbers of results beside those that a paper prints, with their differences."""

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeVar

from experiments.common import tables
from experiments.common.records import Record
from experiments.report.blocks import Table
from opnorm import papers, training

RowT = TypeVar("RowT", bound=tuple[Any, ...])


class Pair(NamedTuple):
    """A number here, and the one that a paper prints.

    Attributes:
      network: the network.
      quantity: the quantity.
      here: the number here with its standard error, which may be None.
      paper: the printed number.
      fraction: whether both are fractions, which are shown as percents.
    """

    network: str
    quantity: str
    here: tuple[Any, Any]
    paper: float
    fraction: bool = True


def table(kind: str, results: Record) -> Table | None:
    """Returns the table of all pairs; None where no paper prints any.

    Args:
      kind: as ``kinds.kind`` returns it.
      results: the content of the file. Anything may be in it, so that any exception may
        be raised.
    """
    find = _PAIRS.get(kind)
    found = [] if find is None else list(find(results))
    if not found:
        return None
    return Table(
        ("network", "quantity", "here", "paper", "difference"),
        tuple(map(_row, found)),
        "Beside the paper's numbers. The paper's networks, and mostly its data, are "
        "larger; ± is the standard error where it is known.",
    )


def _row(pair: Pair) -> tuple[str, ...]:
    times = 100 if pair.fraction else 1
    form, unit = ("{:.1f}", " %") if pair.fraction else ("{:.3g}", "")
    here = tables.with_error(form, times=times, unit=unit, alone=True)(pair.here)
    paper = tables.number(form + unit, times=times)(pair.paper)
    mean = pair.here[0]
    difference = None if mean is None else mean - pair.paper
    signed, points = ("{:+.1f} points", 100) if pair.fraction else ("{:+.3g}", 1)
    shown = tables.number(signed, times=points)(difference)
    return pair.network, pair.quantity, here, paper, shown


def _mean(found: Any) -> tuple[Any, Any]:
    return (None, None) if found is None else (found["mean"], found["standard_error"])


def _printed(name: str, kind: type[RowT]) -> RowT | None:
    """The row that a paper prints for a recipe; None where there is none.

    The recipe of results may be one that is not known here.
    """
    preset = training.PRESETS.get(name)
    return None if preset is None else preset.row(kind)


def _reproduce(results: Record) -> Iterator[Pair]:
    for name, row in results["rows"].items():
        printed = _printed(row.get("preset", name), papers.roth.Trained)
        curve = row["accuracy"].get("L2")
        if printed is None or curve is None:
            continue
        here = curve["mean"][0], curve["standard_error"][0]
        label = name.removeprefix("roth_").replace("_", " ")
        yield Pair(label, "clean accuracy", here, printed.accuracy)


def _gradient_regularization(results: Record) -> Iterator[Pair]:
    from experiments.gradient_regularization.paper import Printed

    paper = results["paper"]
    printed = {} if paper is None else {row[0]: Printed(*row) for row in paper["rows"]}
    for name, network in results["networks"].items():
        row, mean = printed.get(name), network["mean"]
        if row is None:
            continue
        label = network["label"] + (", smooth" if network["smooth"] else "")
        error, seeds = None, len(network["seeds"])
        if network["spread"] is not None:
            error = network["spread"]["clean_error"] / math.sqrt(seeds)
        yield Pair(label, "clean error", (mean["clean_error"], error), row.clean_error)
        for epsilon, error in zip(paper["epsilons"], row.error_at, strict=False):
            found = mean["error_at"].get(f"{epsilon:g}")
            if found is not None:
                quantity = f"error at {255 * epsilon:.3g}/255"
                yield Pair(label, quantity, (found, None), error)
        here = mean["distance"], mean["standard_error"]
        yield Pair(label, "mean distance", here, row.distance, fraction=False)


def _spectral_normalization(results: Record) -> Iterator[Pair]:
    from experiments.spectral_normalization import tables as own

    for name, scheme in results["schemes"].items():
        printed = _printed(name, papers.farnia.Accuracy)
        if printed is None:
            continue
        label, networks = own.label(name), scheme["networks"]
        quantity = "test accuracy under the attack trained with"
        yield Pair(label, quantity, _mean(networks["none"]["test"]), printed.test)
        # The paper bounds the layers' norms by dividing by them.
        best = scheme["chosen"].get("normalize")
        if best is not None:
            found = _mean(networks[best]["test"])
            yield Pair(label, f"{quantity}, bounded", found, printed.bounded_test)


def _regularization_view(results: Record) -> Iterator[Pair]:
    from experiments.regularization_view import networks
    from experiments.regularization_view import tables as own

    view = papers.regularization_view
    plain = (*view.TABLE_3.rows, *view.TABLE_4.rows, *view.TABLE_5.rows)
    printed = [(networks.PGD, row) for row in (*plain, *view.TABLE_6.rows)]
    printed += [(networks.FGSM, row) for row in view.TABLE_2.rows]
    for row in results["rows"]:
        recipe = results["recipes"][row["recipe"]]
        place = recipe["dataset"], own.architecture_label(recipe), row["bound"]
        for attack, each in printed:
            architecture = own.ARCHITECTURES[each.architecture]
            level = row["level"] == each.trained_with
            same = place == (each.dataset, architecture, each.bound) and level
            if not same or row["attack"] not in (attack, networks.STANDARD):
                continue
            label = f"{architecture}, {own.DATASETS[each.dataset]}, {row['name']}"
            for field, mean, fraction in (
                ("test_accuracy", "test_accuracy", True),
                ("accuracy_gap", "error_gap", True),
                ("loss_gap", "loss_gap", False),
                ("robust", "conditional", True),
            ):
                value = getattr(each, field)
                if value is not None and row["mean"].get(mean) is not None:
                    quantity = own.quantity_label(mean)
                    here = _mean(row["mean"][mean])
                    yield Pair(label, quantity, here, value, fraction)
            break


_PAIRS: dict[str, Callable[[Record], Iterator[Pair]]] = {
    "reproduce": _reproduce,
    "gradient_regularization": _gradient_regularization,
    "spectral_normalization": _spectral_normalization,
    "regularization_view": _regularization_view,
}
