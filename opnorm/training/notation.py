"""Fields of a configuration that hold lists, written as text."""

import math


def parse_phases(text: str) -> tuple[tuple[int, int, int, float], ...]:
    """Reads ``Config.phases``: (first epoch, image size, batch size, least area) each.

    Raises:
      ValueError: if it is not of that form, or the first epochs do not begin at 0 and
        rise.
    """
    phases = []
    for part in text.split(","):
        values = part.split(":")
        try:
            first, size, batch = (int(value) for value in values[:-1])
            area = float(values[-1])
        except ValueError:
            raise ValueError(
                f"phases is {text!r}; each must be first epoch:image size:batch "
                "size:least area, such as 0:128:512:0.08."
            ) from None
        if min(size, batch) < 1 or not 0 < area <= 1:
            raise ValueError(
                f"phases is {text!r}; sizes must be at least 1, areas in (0, 1]."
            )
        phases.append((first, size, batch, area))
    starts = [phase[0] for phase in phases]
    if starts[0] != 0 or sorted(set(starts)) != starts:
        raise ValueError(
            f"phases is {text!r}; their first epochs must begin at 0 and rise."
        )
    return tuple(phases)


def parse_rates(text: str) -> tuple[tuple[float, float], ...]:
    """Reads ``Config.learning_rates``: (epoch, rate) each.

    Raises:
      ValueError: if it is not of that form, begins elsewhere than at 0, or if the
        epochs fall or rates are negative.
    """
    try:
        points = [
            (float(epoch), float(rate))
            for epoch, rate in (part.split(":") for part in text.split(","))
        ]
    except ValueError:
        raise ValueError(
            f"learning_rates is {text!r}; it must be epoch:rate with commas between, "
            "such as 0:0.1,10:0.01."
        ) from None
    epochs = [epoch for epoch, _ in points]
    rise = all(map(math.isfinite, epochs)) and sorted(epochs) == epochs
    if epochs[0] != 0 or not rise or len(points) < 2:
        raise ValueError(
            f"learning_rates is {text!r}; its epochs must begin at 0 and rise."
        )
    if not all(0 <= rate < math.inf for _, rate in points):
        raise ValueError(
            f"learning_rates is {text!r}; rates must be finite and at least 0."
        )
    return tuple(points)


def parse_milestones(text: str) -> tuple[float, ...]:
    """Reads ``Config.milestones``.

    Raises:
      ValueError: if it is not finite numbers of epochs that rise.
    """
    try:
        epochs = [float(part) for part in text.split(",")]
    except ValueError:
        epochs = []
    finite = all(map(math.isfinite, epochs))
    if not epochs or not finite or epochs[0] < 0 or sorted(set(epochs)) != epochs:
        raise ValueError(
            f"milestones is {text!r}; it must be epochs that rise, with commas between."
        )
    return tuple(epochs)
