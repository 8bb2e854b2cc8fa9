"""The sections of a report, from what was found."""

import datetime
from collections.abc import Iterable, Sequence
from typing import Any

from experiments.common import tables
from experiments.common.records import Record
from experiments.report import beside, drawn, entries, search, settings
from experiments.report.blocks import (
    Block,
    Bullets,
    Details,
    Heading,
    Link,
    Note,
    Paragraph,
    Report,
    Section,
    Table,
    read_markdown,
)
from experiments.report.entries import ENTRIES
from experiments.report.search import Findings, Found, Run
from opnorm import runs

# The quantities of a training that its row shows, the most telling first.
_METRICS = {
    "validation_pga_accuracy": "validation accuracy, PGA",
    "validation_accuracy": "validation accuracy",
    "adversarial_accuracy": "training accuracy, adversarial",
    "accuracy": "training accuracy",
    "loss": "loss",
}
# The names of files of results that say no more than their folder.
_FILES = frozenset(
    f"{name}.json"
    for name in (
        *("results", "comparison", "benchmark", "roofline", "evaluation"),
        *("iterations", "card", "transfer"),
    )
)
_SHORT = 10


def make(findings: Findings, folders: Sequence[str]) -> Report:
    """Returns the report.

    Args:
      findings: all that lies below the folders.
      folders: the folders as they were given.
    """
    order = list(ENTRIES)
    results = sorted(findings.results, key=lambda each: order.index(each.kind))
    findings = findings._replace(results=results)
    sections = [
        _of_results(found, f"result-{number}", findings)
        for number, found in enumerate(findings.results, start=1)
    ]
    overview = [_results_table(findings)] if findings.results else []
    rest = [
        *_of_runs(findings),
        *_missing(findings),
        *_of_problems(findings),
    ]
    lead: tuple[Block, ...] = (
        Paragraph(_summary(findings, folders)),
        *_warnings(findings),
        *overview,
    )
    return Report("Results", lead, (*sections, *rest))


def _summary(findings: Findings, folders: Sequence[str]) -> str:
    now = datetime.datetime.now(datetime.UTC)
    counts = [
        f"{len(findings.results)} files of results",
        f"{len(findings.runs)} trainings",
    ]
    if findings.unfinished:
        counts.append(f"{len(findings.unfinished)} commands without results")
    if findings.problems:
        counts.append(f"{len(findings.problems)} files that cannot be shown")
    return (
        f"Found below {', '.join(folders)}: {', '.join(counts)}. Made on "
        f"{now:%Y-%m-%d %H:%M} UTC by opnorm {runs.version()}. ± is a standard error; "
        "each section says what it is over. A dash stands for a number that is not "
        "known."
    )


def _warnings(findings: Findings) -> list[Block]:
    """The notes on results that do not go together."""
    every = [found.results for found in findings.results]
    notes: list[Block] = []
    revisions = _different(map(_revision, every))
    if len(revisions) > 1:
        text = f"The results are of {len(revisions)} revisions of the code."
        notes.append(Note(text))
    data = _different(map(_named_data, every))
    if len(data) > 1:
        text = "The results are of different data, whose numbers are not comparable"
        notes.append(Note(f"{text}: {'; '.join(data)}."))
    changed = [f.name for f in findings.results if _revision(f.results).endswith("*")]
    if changed:
        text = "The code had changes that were not committed, which * marks, for"
        notes.append(Note(f"{text} {', '.join(changed)}."))
    return notes


def _different(values: Iterable[str]) -> list[str]:
    return [value for value in dict.fromkeys(values) if value != tables.MISSING]


def _results_table(findings: Findings) -> Table:
    rows = []
    for number, found in enumerate(findings.results, start=1):
        results = found.results
        rows.append(
            (
                Link(_place(found), f"result-{number}"),
                ENTRIES[found.kind].title,
                _data(results),
                _seeds(results),
                _revision(results),
                _device(results),
                _written(found),
            )
        )
    titles = ("results", "of", "data", "seeds", "revision", "device", "written")
    # A column that no file fills says nothing.
    kept = [
        place
        for place in range(len(titles))
        if any(row[place] != tables.MISSING for row in rows)
    ]
    return Table(
        tuple(titles[place] for place in kept),
        tuple(tuple(row[place] for place in kept) for row in rows),
        "Overview",
    )


def _title(found: Found) -> str:
    """The entry and the place of results, which together are theirs alone."""
    return f"{ENTRIES[found.kind].title}: {_place(found)}"


def _place(found: Found) -> str:
    """The folder of results, with the name of the file where it is not the usual."""
    if found.file.name in _FILES:
        return found.name
    return f"{found.name}/{found.file.stem}"


def _data(results: Record) -> str:
    """The data of results, or the name that they were loaded by."""
    base = results.get("base")
    name = base.get("dataset") if isinstance(base, dict) else None
    named = _named_data(results)
    return name if named == tables.MISSING and isinstance(name, str) else named


def _named_data(results: Record) -> str:
    found, recipes = results.get("data"), results.get("recipes")
    if isinstance(found, str):
        return found
    if isinstance(recipes, dict):
        every = [r.get("data") for r in recipes.values() if isinstance(r, dict)]
        return ", ".join(map(str, dict.fromkeys(every)))
    return tables.MISSING


def _seeds(results: Record) -> str:
    flags = results.get("flags")
    listed = flags.get("seeds") if isinstance(flags, dict) else results.get("seeds")
    if isinstance(listed, list):
        return ", ".join(map(str, listed))
    if isinstance(listed, int):
        return f"{listed} of them"
    seed = results.get("seed")
    return tables.MISSING if seed is None else settings.show(seed)


def _revision(results: Record) -> str:
    revision = results.get("git_revision")
    if not isinstance(revision, str):
        return tables.MISSING
    mark = "*" if revision.endswith("-dirty") else ""
    return revision.removesuffix("-dirty")[:_SHORT] + mark


def _device(results: Record) -> str:
    environment = results.get("environment")
    if not isinstance(environment, dict):
        return tables.MISSING
    return settings.show(environment.get("device", tables.MISSING))


def _written(found: Found) -> str:
    for text in (found.results.get("written"), found.card.get("date")):
        if isinstance(text, str):
            return text[:_SHORT]
    return tables.MISSING


def _of_results(found: Found, anchor: str, findings: Findings) -> Section:
    """The section of a file of results."""
    entry, results = ENTRIES[found.kind], found.results
    parts: list[Block] = [Paragraph(entry.question)]
    if facts := _facts(found):
        parts.append(Paragraph(facts))
    parts += _others(found, findings)
    parts += _tables(found)
    parts += drawn.of_results(found, anchor)
    inside: list[Block] = [Paragraph(settings.origin(results))]
    try:
        inside += settings.of_results(results, found.card)
    # A file that somebody else has written may hold anything.
    except Exception as error:
        inside.append(Note(f"Settings cannot be shown: {drawn.describe(error)}."))
    parts += [Heading("Settings and origin"), *inside]
    return Section(anchor, _title(found), tuple(parts))


def _facts(found: Found) -> str:
    results = found.results
    facts = {"Network": results.get("run"), "Data": _data(results)}
    facts["Seeds"] = _seeds(results)
    known = [
        f"{name}: {value}."
        for name, value in facts.items()
        if isinstance(value, str) and value != tables.MISSING
    ]
    return " ".join([*known, ENTRIES[found.kind].errors]).strip()


def _others(found: Found, findings: Findings) -> list[Block]:
    """The notes on results of the same kind that are of other data or code."""
    same = [
        other
        for other in findings.results
        if other.kind == found.kind and other.file != found.file
    ]
    data = _named_data(found.results)
    parts: list[Block] = []
    others = [_place(other) for other in same if _named_data(other.results) != data]
    if others:
        parts.append(Note(f"Other data than {', '.join(others)}."))
    revision = _revision(found.results)
    others = [_place(other) for other in same if _revision(other.results) != revision]
    if others:
        parts.append(Paragraph(f"Other revision than {', '.join(others)}."))
    return parts


def _tables(found: Found) -> list[Block]:
    """The tables of results, ours beside the paper's where there are such."""
    parts: list[Block] = []
    try:
        text = entries.tables(found.kind, found.results)
        if text is None:
            text = _written_tables(found)
        if text is None:
            parts.append(Note("There are no tables: the file of tables is missing."))
        else:
            parts += read_markdown(text)
        compared = beside.table(found.kind, found.results)
        if compared is not None:
            parts.append(compared)
    # A file that somebody else has written may hold anything.
    except Exception as error:
        text = _written_tables(found)
        reason = drawn.describe(error)
        if text is None:
            return [*parts, Note(f"The tables could not be made: {reason}.")]
        parts = [
            Note(f"The tables are those beside the file; making them failed: {reason}.")
        ]
        parts += read_markdown(text)
    return parts


def _written_tables(found: Found) -> str | None:
    names = [found.file.with_suffix(".md").name, *entries.WRITTEN]
    for name in names:
        text = search.read_text(found.file.parent / name)
        if text is not None:
            return text
    return None


def _of_runs(findings: Findings) -> list[Section]:
    """A table of all trainings, and a section for each that stands alone."""
    if not findings.runs:
        return []
    alone = [run for run in findings.runs if not run.inside]
    anchors = {run.name: f"training-{n}" for n, run in enumerate(alone, start=1)}
    rows = []
    for run in findings.runs:
        flags = run.card["flags"]
        named = Link(run.name, anchors[run.name]) if run.name in anchors else run.name
        plain = (flags.get(name) for name in ("method", "model", "dataset", "seed"))
        rows.append((named, *map(settings.show, plain), _state(run), _last(run)))
    table = Table(
        ("training", "method", "network", "data", "seed", "state", "last metrics"),
        tuple(rows),
        "Trainings, those of the results above among them",
    )
    sections = [Section("trainings", "Trainings", (table,))]
    for run in alone:
        parts: list[Block] = [Paragraph(f"State: {_state(run)}. {_last(run)}.")]
        anchor = anchors[run.name]
        if run.metrics:
            parts += drawn.of_run(run, anchor)
        parts.append(Heading("Settings and origin"))
        parts.append(Paragraph(settings.origin(run.card)))
        parts += settings.of_run(run.card)
        sections.append(Section(anchor, f"Training: {run.name}", tuple(parts)))
    return sections


def _state(run: Run) -> str:
    """Whether a training has ended, by the last line of its metrics."""
    wanted = run.card["flags"].get("epochs")
    epochs = [line["epoch"] for line in run.metrics if _is_number(line.get("epoch"))]
    if not epochs:
        return "partial: no metrics yet"
    if not _is_number(wanted):
        return f"at epoch {epochs[-1]:g}"
    if epochs[-1] >= wanted - 1e-6:
        return f"finished, {wanted:g} epochs"
    return f"partial: epoch {epochs[-1]:.3g} of {wanted:g}"


def _last(run: Run) -> str:
    """The last values of the quantities of a training."""
    shown = []
    for name, text in _METRICS.items():
        values = [line[name] for line in run.metrics if _is_number(line.get(name))]
        if values:
            shown.append(f"{text} {values[-1]:.3g}")
    return ", ".join(shown) or tables.MISSING


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _missing(findings: Findings) -> list[Section]:
    """The section on questions without results, and on commands that did not end."""
    there = {found.kind for found in findings.results}
    rows = [
        (entry.question, f"opnorm {entry.command}")
        for kind, entry in ENTRIES.items()
        if kind not in there
    ]
    parts: list[Block] = []
    if findings.unfinished:
        lines = []
        for name, card in findings.unfinished:
            words = settings.command(card) or ["", "a command that is not known"]
            began = card.get("date")
            when = f", begun on {began[:_SHORT]}" if isinstance(began, str) else ""
            lines.append(f"{name}: {words[1]} has written no results{when}")
        parts += [Heading("Begun and without results"), Bullets(tuple(lines))]
    if rows:
        caption = "Not run, or not below these folders"
        table = Table(("question", "command"), tuple(rows), caption)
        parts.append(Details(f"{caption}: {len(rows)} questions", (table,)))
    return [Section("missing", "What is missing", tuple(parts))] if parts else []


def _of_problems(findings: Findings) -> list[Section]:
    if not findings.problems:
        return []
    rows = tuple((problem.name, problem.reason) for problem in findings.problems)
    table = Table(("file", "reason"), rows)
    return [Section("not-shown", "Files that are not shown", (table,))]
