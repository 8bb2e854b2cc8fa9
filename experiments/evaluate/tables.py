"""The results of an evaluation as text."""

from collections.abc import Mapping, Sequence
from typing import Any

from experiments.common import seeds, tables
from experiments.common.tables import Column
from experiments.evaluate import goals

_PERCENT = tables.number("{:.1%}")
_CORRECT = Column("mean of correct", "mean_of_correct", tables.number())
_NEAREST = (
    Column("nearest point", "name"),
    Column("found", "found", _PERCENT),
    Column("mean distance", "mean", tables.number()),
    Column("median", "median", tables.number()),
    _CORRECT,
    Column("seconds", "seconds", tables.number("{:.0f}")),
)
# With targets the same mean is over the images that are not of the target class at x.
_REACHED = tuple(
    column._replace(title="mean above 0") if column is _CORRECT else column
    for column in _NEAREST
)


def text(card: Mapping[str, Any]) -> str:
    """Returns the results as Markdown."""
    blocks = [
        f"# Evaluation of {card['run']}",
        f"{card['data']}, {card['split']}, {card['examples']} examples; {card['norm']} "
        f"norm, {goals.unit(card)}; seed {card['seed']}; revision "
        f"{card['git_revision']}; clean accuracy {card['clean_accuracy']:.1%}; ± is "
        f"the {seeds.bands(card)}.",
        *goals.as_text(card),
        *_tables(card),
    ]
    if card.get("improvement"):
        blocks.append(_improvement(card["improvement"]))
    lines = [*checks_as_text(card["checks"]), *reuse_as_text(card)]
    if card.get("saved"):
        lines.append(_saved(card["saved"]))
    blocks.append("\n".join(f"- {line}" for line in lines))
    return "\n\n".join(blocks).rstrip() + "\n"


def _tables(results: Mapping[str, Any]) -> list[str]:
    """The tables of rates, of nearest points, and after each stage."""
    best = results["best_known"][results["norm"]]
    targeted = "targets" in results
    cards = tables.named(results["attacks"])
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
        Column(f"{goals.rate(results)} at epsilon", "name"),
        *(Column(f"{e:g}", _at(i), accuracy) for i, e in enumerate(epsilons)),
    ]
    found = [tables.table([*curves, {"name": "best known", **best}], columns)]
    if nearest:
        found.append(tables.table(nearest, _REACHED if targeted else _NEAREST))
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


def _saved(saved: Mapping[str, Any]) -> str:
    """Returns a line on the images that were saved, and on those that rounding lost."""
    text = f"saved {saved['adversarial']} adversarial images to {saved['path']}"
    if saved["quantize"] is None:
        return text
    text += f", rounded to steps of 1/{saved['quantize']}"
    if not saved["lost"]:
        return f"{text}; all stayed adversarial and within the budget"
    places = ", ".join(map(str, saved["lost"]))
    return (
        f"{text}; {len(saved['lost'])} did not stay adversarial within the budget and "
        f"are saved as the clean image: examples {places}"
    )


def transfer_text(found: Mapping[str, Any]) -> str:
    """Returns the results on attacked images that were made for another network."""
    accuracy = tables.with_error("{:.1%}")
    columns = [
        Column("accuracy on", "name"),
        Column("accuracy", "value", accuracy),
        Column("examples", "count"),
    ]
    rows = [
        {"name": name, "value": found[kind], "count": count}
        for name, kind, count in (
            ("clean images", "clean", found["examples"]),
            ("attacked images", "attacked", found["examples"]),
        )
    ]
    success = tables.with_error("{:.1%}")(found["success"])
    return (
        f"# Transfer to {found['run']}\n\n{found['set']}: {found['data']}; "
        f"{found['attack']} with p = {found['p']:g}, epsilon = {found['epsilon']:g}; "
        f"revision {found['git_revision']}.\n\n{tables.table(rows, columns)}\n\n"
        f"- {success} of the {found['success']['counted']} images that are adversarial "
        "for the attacked network, and that this network has right, are misclassified "
        "when attacked.\n"
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
