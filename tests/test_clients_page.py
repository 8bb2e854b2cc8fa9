"""The table of docs/results/clients.md is that of the committed results."""

import json
from pathlib import Path

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "experiments" / "results" / "clients"
LIBRARIES = ("opnorm", "foolbox", "torchattacks", "ART")


def cell(row, library):
    found = row["found"].get(library)
    if found is None:
        return ""
    text = f"{100 * found['accuracy']:.0f}"
    nearest = row["found"]["opnorm"]["misclassified"] == 1
    return f"{text} ({found['median_length']:.3f})" if nearest else text


def lines(row):
    norm = "L2" if row["p"] == 2 else "Linf"
    cells = [row["attack"], norm, *(cell(row, library) for library in LIBRARIES)]
    return " | ".join(cells)


def test_the_table_has_the_numbers_of_the_results():
    page = (ROOT / "docs" / "results" / "clients.md").read_text()
    rows = [
        row
        for name in ("shipped", "square")
        for row in json.loads((RESULTS / name / "results.json").read_text())["shipped"]
    ]
    assert len(rows) > 5
    assert [row["attack"] for row in rows if f"| {lines(row)} |" not in page] == []
