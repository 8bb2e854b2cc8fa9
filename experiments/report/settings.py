"""The settings of results, those that are no defaults first, and the origin."""

import dataclasses
import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.common.records import Record
from experiments.report.blocks import Block, Code, Details, Paragraph, Table
from opnorm import training

# Parts of results that hold settings in a form of their own.
_GROUPS = ("flags", "base", "measurement", "settings")
# Plain values of results that are no settings.
_FACTS = (
    *("data", "experiment", "git_revision", "seconds", "summary_revision", "written"),
    *("format", "run", "network", "method", "clean_accuracy", "robust_accuracy"),
    *("clean_standard_error", "robust_standard_error", "expected_random_alignment"),
    *("largest_logit_difference", "random_alignment", "reused_pieces", "command"),
    *("sorted_by", "set", "variables", "step", "suffix", "training_epsilon"),
)
_PACKAGES = (
    *("opnorm", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy"),
    "python",
)
_LONGEST = 200


def of_results(results: Record, card: Record) -> list[Block]:
    """Returns the settings of results as blocks.

    Args:
      results: the content of a file of results.
      card: the content of the flags.json beside it; empty if there is none.
    """
    groups: dict[str, Any] = {"": _measurement(results)}
    for name in _GROUPS:
        part = results.get(name)
        if isinstance(part, Mapping):
            groups[name] = part
    configs = list(_configs(results))
    given = results.get("given")
    given = dict(given) if isinstance(given, Mapping) else {}
    parts: list[Block] = [*_given(given, command(card))]
    changed, defaults = _split(groups, given)
    parts += _changes(configs)
    if changed:
        parts.append(_pairs("Settings of the measurement", changed))
    if defaults:
        parts.append(
            Details("Settings at their defaults", (_pairs("", defaults),)),
        )
    return parts


def of_run(card: Record) -> list[Block]:
    """Returns the settings of a training as blocks."""
    flags = card["flags"]
    changed = _different(flags)
    rest = {name: value for name, value in flags.items() if name not in changed}
    parts: list[Block] = list(_given({}, command(card)))
    if changed:
        parts.append(_pairs("Settings that differ from the defaults", changed))
    if rest:
        parts.append(Details("Settings at their defaults", (_pairs("", rest),)))
    return parts


def origin(results: Record) -> str:
    """Returns hardware, releases and revision of results in words."""
    found = results.get("environment")
    environment = found if isinstance(found, Mapping) else {}
    machine = results.get("machine")
    parts = []
    if environment:
        parts.append(
            f"Hardware: {environment.get('device_count', '?')} x "
            f"{environment.get('device', '?')} ({environment.get('platform', '?')}), "
            f"{environment.get('processor', 'processor unknown')}, "
            f"{environment.get('cpu_count', '?')} CPUs"
        )
        if isinstance(machine, Mapping) and "processor" in machine:
            parts[-1] += f", {machine['processor']}"
        releases = [f"{n} {environment[n]}" for n in _PACKAGES if n in environment]
        parts.append("Releases: " + ", ".join(releases))
        if "onednn" in environment:
            chosen = "oneDNN" if environment["onednn"] else "XLA"
            parts.append(f"Convolutions by {chosen}")
    parts.append(f"Revision: {results.get('git_revision') or 'unknown'}")
    if results.get("summary_revision"):
        parts.append(f"Summed up at revision {results['summary_revision']}")
    if isinstance(results.get("seconds"), int | float):
        parts.append(f"Time: {duration(results['seconds'])}")
    return ". ".join(parts) + "."


def duration(seconds: float) -> str:
    """Returns a time in words, such as "7 min"."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 6000:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def show(value: Any) -> str:
    """Returns a value of a JSON file as a short text."""
    if isinstance(value, list):
        text = ", ".join(map(show, value))
    elif isinstance(value, Mapping):
        text = json.dumps(value)
    elif value is None or isinstance(value, bool):
        text = {None: "none", True: "yes", False: "no"}[value]
    else:
        text = f"{value:.10g}" if isinstance(value, float) else str(value)
    return text if len(text) <= _LONGEST else text[:_LONGEST] + " ..."


def command(card: Record) -> list[str] | None:
    """Returns the words of the command that wrote a flags.json, "opnorm" first.

    Returns:
      Such as ["opnorm", "train", "--epochs=3"]; None where it is not known.
    """
    words = card.get("command")
    if not isinstance(words, list) or not all(isinstance(w, str) for w in words):
        return None
    if words and Path(words[0]).name.startswith("python"):
        words = words[1:]
    if words[:1] == ["-m"]:
        words = words[1:]
    if not words:
        return None
    first, rest = words[0], words[1:]
    if Path(first).name in ("opnorm", "experiments") or first.endswith("/__main__.py"):
        package = Path(first).parent.name
        if package not in ("opnorm", "experiments") and first.endswith(".py"):
            return ["opnorm", package, *rest]
        return ["opnorm", *rest] if rest else None
    if first.endswith(".py"):
        return ["opnorm", Path(first).stem, *rest]
    return ["opnorm", first.removeprefix("experiments."), *rest]


def _given(given: Record, words: Sequence[str] | None) -> Iterator[Block]:
    if words:
        yield Paragraph("The command that began it:")
        yield Code(shlex.join(words))
    elif given:
        yield _pairs("Flags that were given", given)


def _measurement(results: Record) -> Record:
    """The plain values of results that say how they were measured."""
    return {
        name: value
        for name, value in results.items()
        if name not in _FACTS
        and (
            isinstance(value, str | int | float | None)
            or (isinstance(value, list) and len(value) < 20 and _is_plain(value))
        )
    }


def _is_plain(values: Sequence[Any]) -> bool:
    return all(isinstance(value, str | int | float) for value in values)


def _configs(results: Record) -> Iterator[tuple[str, Record]]:
    """The configurations of trainings that results hold, with the name of each."""
    flags = results.get("flags")
    listed = flags.get("configs") if isinstance(flags, Mapping) else None
    if isinstance(listed, list):
        names = [f"network {number}" for number in range(1, len(listed) + 1)]
        yield from (p for p in zip(names, listed, strict=True) if _is_config(p[1]))
    if _is_config(results.get("base")):
        yield "all points", results["base"]
    for part in ("rows", "schemes"):
        rows = results.get(part)
        for name, row in rows.items() if isinstance(rows, Mapping) else ():
            if isinstance(row, Mapping) and _is_config(row.get("config")):
                yield name, row["config"]


def _is_config(value: Any) -> bool:
    return isinstance(value, Mapping) and {"dataset", "method", "epochs"} <= set(value)


def _changes(configs: Sequence[tuple[str, Record]]) -> list[Block]:
    """The settings of the trainings that differ from the defaults.

    Those that all share are one table, and the others have a row for each network.
    """
    if not configs:
        return []
    different = [(name, _different(config)) for name, config in configs]
    names = list(dict.fromkeys(name for _, each in different for name in each))
    values = {
        name: [config.get(name) for _, config in configs] for name in sorted(names)
    }
    shared = {
        name: found[0]
        for name, found in values.items()
        if all(each == found[0] for each in found)
    }
    parts: list[Block] = []
    if shared:
        title = "Training: settings that differ from the defaults"
        parts.append(_pairs(f"{title}, of all networks", shared))
    own = [name for name in values if name not in shared]
    if own:
        rows = tuple(
            (label, *(show(config.get(name)) for name in own))
            for label, config in configs
        )
        table = Table(("network", *own), rows, "Training: settings by network")
        parts.append(Details("Settings of each network", (table,)))
    return parts


def _different(config: Record) -> Record:
    """The fields of a configuration that differ from the defaults."""
    fields = dataclasses.fields(training.Config)
    defaults = {field.name: field.default for field in fields}
    return {
        name: value
        for name, value in config.items()
        if name not in defaults or _as_json(defaults[name]) != value
    }


def _as_json(value: Any) -> Any:
    if isinstance(value, tuple):
        return list(value)
    return "inf" if value == float("inf") else value


def _split(groups: Mapping[str, Any], given: Record) -> tuple[Record, Record]:
    """The settings of the groups: those that count first, and the others."""
    first, rest = {}, {}
    for group, values in groups.items():
        if _is_config(values):
            continue
        for name, value in values.items():
            if name == "configs":
                continue
            label = f"{group}: {name}" if group not in ("", "flags") else name
            if given and name not in given:
                rest[label] = value
            else:
                first[label] = value
    return first, rest


def _pairs(caption: str, values: Record) -> Table:
    rows = tuple((name, show(value)) for name, value in values.items())
    return Table(("setting", "value"), rows, caption)
