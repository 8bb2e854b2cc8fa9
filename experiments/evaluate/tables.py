"""The results of an evaluation as text."""

from collections.abc import Mapping, Sequence
from typing import Any

from experiments.common import seeds, tables
from experiments.common.tables import Column

_PERCENT = tables.number("{:.1%}")
_NEAREST = (
    Column("nearest point", "name"),
    Column("found", "found", _PERCENT),
    Column("mean distance", "mean", tables.number()),
    Column("median", "median", tables.number()),
    Column("mean of correct", "mean_of_correct", tables.number()),
    Column("seconds", "seconds", tables.number("{:.0f}")),
)


def text(card: Mapping[str, Any]) -> str:
    """Returns the results as Markdown."""
    blocks = [
        f"# Evaluation of {card['run']}",
        f"{card['data']}, {card['split']}, {card['examples']} examples; {card['norm']} "
        f"norm, pixels in [0, 1]; seed {card['seed']}; revision "
        f"{card['git_revision']}; clean accuracy {card['clean_accuracy']:.1%}; ± is "
        f"the {seeds.bands(card)}.",
        *_tables(card["attacks"], card["best_known"][card["norm"]]),
    ]
    if card.get("improvement"):
        blocks.append(_improvement(card["improvement"]))
    lines = [*checks_as_text(card["checks"]), *reuse_as_text(card)]
    blocks.append("\n".join(f"- {line}" for line in lines))
    return "\n\n".join(blocks).rstrip() + "\n"


def _tables(
    attacks: Mapping[str, Mapping[str, Any]], best: Mapping[str, Any]
) -> list[str]:
    """The tables of accuracies, of nearest points, and after each stage."""
    cards = tables.named(attacks)
    curves = [card for card in cards if "epsilon" in card]
    nearest = [card for card in cards if "found" in card]
    after = [
        {"name": name, "mean": means}
        for card in cards
        for name, means in card.get("after", {}).items()
    ]
    accuracy = tables.with_error("{:.1%}")
    epsilons = best["epsilon"]
    columns = [
        Column("accuracy at epsilon", "name"),
        *(Column(f"{e:g}", _at(i), accuracy) for i, e in enumerate(epsilons)),
    ]
    found = [tables.table([*curves, {"name": "best known", **best}], columns)]
    if nearest:
        found.append(tables.table(nearest, _NEAREST))
    if after:
        columns = [
            Column("after", "name"),
            *(
                Column(f"{e:g}", ("mean", i), _PERCENT)
                for i, e in enumerate(epsilons[1:])
            ),
        ]
        found.append(tables.table(after, columns))
    return found


def _at(place: int) -> Any:
    """Mean and standard error at one place of a curve."""
    return lambda row: (row["mean"][place], row["standard_error"][place])


def _improvement(found: Mapping[str, Any]) -> str:
    number = tables.number()
    return (
        f"Improvement over {found['baseline']}: distance "
        f"{number(found['distance_gain'])}, error {number(found['error_rise'])}, ratio "
        f"{number(found['ratio'])}."
    )


def checks_as_text(checks: Sequence[Mapping[str, Any]]) -> list[str]:
    """Returns one line for each sanity check."""
    return [
        f"{'ok' if check['passed'] else 'WARNING'}: {check['name']}: {check['detail']}"
        for check in checks
    ]


def reuse_as_text(card: Mapping[str, Any]) -> list[str]:
    """Returns one line for each part of the results that an earlier process made."""
    lines = [
        f"reused: {attack['reused']} of {attack['pieces']} pieces of {name} were "
        "measured by an earlier evaluation"
        for name, attack in card["attacks"].items()
        if attack.get("reused")
    ]
    lines += [
        "reused: best known includes distances of an earlier evaluation by "
        + ", ".join(found["earlier_attacks"])
        for found in card["best_known"].values()
        if found.get("earlier_attacks")
    ]
    return lines
