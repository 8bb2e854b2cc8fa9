"""The figures of an evaluation."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from experiments.common import figures, scales, seeds
from experiments.evaluate import goals

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw(card: Mapping[str, Any]) -> Iterator[figures.Drawing]:
    """Draws accuracies, distances and, where they were measured, singular values.

    Args:
      card: the results.

    Yields:
      "accuracy", "distances" and "singular_values"; with an end for goals.
    """
    end = card.get("suffix", "")
    source = f"{card['data']}, {card['examples']} {card.get('split', '')} images"
    rate = goals.rate(card)
    source_and_bands = f"{source}\nbands: {seeds.bands(card)}"
    curves = {
        figures.attack_label(name): found
        for name, found in card["attacks"].items()
        if "epsilon" in found
    }
    yield (
        f"accuracy{end}",
        figures.draw_accuracy(
            {**curves, "best known": card["best_known"][card["norm"]]},
            training_epsilon=card.get("training_epsilon"),
            norm=card["norm"],
            title=f"{rate.capitalize()} under attack; {source_and_bands}",
            rate=rate,
            unit=goals.unit(card),
        ),
    )
    if "nearest_distances" in card:
        yield f"distances{end}", _draw_distances(card, source)
    if "spectrum" in card:
        values = {"network": card["spectrum"]["singular_values"]}
        title = "Singular values of the Jacobian at the images"
        figure = figures.draw_singular_values(
            values, title=f"{title}; {source_and_bands}"
        )
        yield f"singular_values{end}", figure


def _draw_distances(card: Mapping[str, Any], source: str) -> "Figure":
    """Draws how many images have a nearest point of success within each distance."""
    members = card["nearest_distances"]
    errors = "one network, without errors"
    if len(members) > 1:
        errors = f"bands: {seeds.bands(card)}"
    figure, (axes,) = figures.new_panels(
        f"Nearest point at which an attack succeeds; {source}\n"
        f"attacks of a fixed length succeed at that length; {errors}",
        ("",),
    )
    figures.distribution(
        axes, members, color=figures.PALETTE[0], label="nearest point of all attacks"
    )
    if card.get("training_epsilon") is not None:
        figures.mark_training(axes, card["training_epsilon"])
    rate = "target reached" if "targets" in card else "error"
    axes.set(ylabel=f"{rate} within the length (%)", ylim=(0, 100), xlim=(0, None))
    scales.label_lengths(axes, card["norm"], goals.unit(card))
    return figures.finish(figure, [axes])
