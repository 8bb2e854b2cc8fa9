"""The report shows what files say, whoever wrote them, as a well-formed page."""

import html.parser
import json
import re
import shutil
import struct
import zlib
from pathlib import Path

import pytest

import experiments
from experiments.common import kinds, records
from experiments.report import (
    beside,
    blocks,
    contents,
    markdown,
    page,
    search,
    settings,
    style,
)
from opnorm import papers

_RESULTS = Path(experiments.__file__).parent / "results"
_HOSTILE = "<script>alert('1')</script> | \"x\" & [y](http://a.b) $z$"
_VOID = {"meta", "img", "br", "link", "wbr"}
_RUN_FLAGS = {"epochs": 2, "method": _HOSTILE, "model": "cnn7", "seed": 0}


class _Page(html.parser.HTMLParser):
    """Reads a page, and notes what is wrong with it."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.open, self.ids, self.links, self.faults = [], [], [], []
        self.headings, self.text = [], []
        self.feed(text)
        self.close()
        self.faults += [f"<{tag}> is not closed" for tag in self.open]

    def handle_starttag(self, tag, attributes):
        self._note(tag, dict(attributes))
        if tag not in _VOID:
            self.open.append(tag)
        if re.fullmatch("h[1-6]", tag):
            self.headings.append(int(tag[1]))

    def handle_startendtag(self, tag, attributes):
        self._note(tag, dict(attributes))

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.faults.append(f"</{tag}> closes another element")

    def handle_data(self, data):
        self.text.append(data)

    def _note(self, tag, attributes):
        if tag in ("script", "iframe", "object", "embed", "base", "form"):
            self.faults.append(f"<{tag}>")
        for name, value in attributes.items():
            if name.startswith("on"):
                self.faults.append(f"{tag} has {name}")
            if name in ("href", "xlink:href", "src"):
                self.links.append(value)
            if name == "style" and "url(" in value.replace("url(#", ""):
                self.faults.append(f"{tag} has the style {value}")
        if "id" in attributes:
            self.ids.append(attributes["id"])
        if tag == "img" and not attributes.get("alt"):
            self.faults.append("an image has no alt text")
        if attributes.get("role") in ("img", "region"):
            assert attributes["aria-label"]


def _png(width, height):
    """A white image."""

    def chunk(kind, content):
        body = kind + content
        return (
            struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))
        )

    rows = (b"\0" + b"\xff" * width) * height
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + parts + chunk(b"IEND", b"")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Results, trainings and files that nobody of us wrote."""
    top = tmp_path_factory.mktemp("runs")

    def write(name, content):
        file = top / name
        file.parent.mkdir(parents=True, exist_ok=True)
        text = content if isinstance(content, str) else json.dumps(content)
        file.write_text(text)
        return file

    for name in ("table2", "search_dense", "table2/sweep_snr"):
        (top / name).mkdir()
        for each in ("results.json", "table.md"):
            shutil.copy(_RESULTS / name / each, top / name / each)
    # Figures that are not drawn from the file are those beside it.
    library = _RESULTS / "attacks" / "standard" / "comparison.json"
    compared = json.loads(library.read_text())
    compared["rows"][0]["attack"] = compared["data"] = _HOSTILE
    write("compared/comparison.json", compared | {"git_revision": "12-dirty"})
    (top / "compared" / "own.png").write_bytes(_png(30, 20))
    (top / "compared" / "no.png").write_text("<svg onload=alert(1)>")
    # Right keys, and wrong values.
    write(
        f"{_HOSTILE.replace('/', '')}/results.json",
        {"networks": {_HOSTILE: 3}, "runs": [], "split": {}, "data": 7, "seeds": "x"},
    )
    write("newer/results.json", {"experiment": "spectrum", "format": 9})
    write("deep/results.json", "[" * 10_000)
    write("damaged/results.json", "{'a': __import__('os')}")
    write("other/package.json", [1, 2])
    (top / "link").mkdir()
    (top / "link" / "results.json").symlink_to(_RESULTS / "table2" / "results.json")
    environment = {"opnorm": "0.1.0", "device": _HOSTILE, "onednn": True}
    card = {"flags": _RUN_FLAGS, "environment": environment, "date": "2026-01-02T03"}
    python = ["/x/python", "-m", "experiments.train", f"--run={_HOSTILE}"]
    lines = [{"step": s, "epoch": s / 4, "loss": 1 / s} for s in range(1, 9)]
    for name, count in (("finished", 8), ("partial", 5)):
        write(f"{name}/flags.json", card | {"command": python})
        metrics = "".join(json.dumps(line) + "\n" for line in lines[:count])
        write(f"{name}/metrics.jsonl", metrics + '{"step": 9')
    path = ["/y/experiments/spectrum/__main__.py"]
    write("begun/flags.json", card | {"command": path})
    write("search_dense/one/flags.json", card | {"command": path})
    write("search_dense/one/metrics.jsonl", json.dumps(lines[0]) + "\n")
    (top / "finished" / "checkpoints").mkdir()
    write("finished/checkpoints/results.json", "no JSON")
    return top


@pytest.fixture(scope="module")
def findings(folder):
    return search.find([str(folder)])


@pytest.fixture(scope="module")
def report(findings, folder):
    return contents.make(findings, [str(folder)])


@pytest.fixture(scope="module")
def text(report):
    return page.write(report)


def test_every_file_is_shown_or_named(findings):
    kinds_found = {found.name: found.kind for found in findings.results}
    hostile = _HOSTILE.replace("/", "")
    assert kinds_found == {
        "table2": "reproduce",
        "table2/sweep_snr": "sweep",
        "search_dense": "equivalence",
        "compared": "compare_attacks",
        hostile: "linearity",
    }
    assert {run.name: run.inside for run in findings.runs} == {
        "finished": False,
        "partial": False,
        "search_dense/one": True,
    }
    assert [name for name, _ in findings.unfinished] == ["begun"]
    reasons = {problem.name: problem.reason for problem in findings.problems}
    assert reasons.keys() == {
        "newer/results.json",
        "deep/results.json",
        "damaged/results.json",
        "other/package.json",
        "link/results.json",
    }
    assert "'spectrum' in a form" in reasons["newer/results.json"]
    assert reasons["link/results.json"] == "it is a symbolic link"
    assert "nested too deeply" in reasons["deep/results.json"]


def test_the_page_is_well_formed_and_needs_nothing_else(text):
    read = _Page(text)
    assert read.faults == []
    assert len(set(read.ids)) == len(read.ids)
    outside = [
        link
        for link in read.links
        if not link.startswith(("#", "data:image/png;base64,"))
    ]
    assert outside == []
    inside = {link[1:] for link in read.links if link.startswith("#")}
    assert inside <= set(read.ids)
    # References of drawings, too.
    assert set(re.findall(r"url\(#([^)]*)\)", text)) <= set(read.ids)
    assert read.headings.count(1) == 1
    steps = zip(read.headings, read.headings[1:], strict=False)
    assert all(after - before <= 1 for before, after in steps)
    assert "@import" not in text
    assert style.POLICY in text
    assert len(text) < 500_000


def test_names_of_somebody_else_are_text(text, report):
    assert "<script" not in text
    assert "onload" not in text
    assert _HOSTILE in "".join(_Page(text).text)
    written = markdown.write(report, "files")
    # Text between fences is shown as it is.
    outside = re.sub(r"(?m)^(`{3,})text\n.*\n\1$", "", written)
    assert len(outside) < len(written)
    assert "<script" not in outside
    assert "[y](http" not in outside
    # A bar in a name makes no cell.
    for table in re.findall(r"(?:^\|.*\n)+", outside, re.MULTILINE):
        cells = {len(re.split(r"(?<!\\)\|", line)) for line in table.splitlines()}
        assert len(cells) == 1, table


def _section(report, title):
    (found,) = (s for s in report.sections if s.title.endswith(f": {title}"))
    return found


def _tables(section):
    return [block for block in section.blocks if isinstance(block, blocks.Table)]


def test_numbers_stand_beside_those_of_the_paper(report):
    results = json.loads((_RESULTS / "table2" / "results.json").read_text())
    curve = results["rows"]["roth_cnn7_snr"]["accuracy"]["L2"]
    here, error = 100 * curve["mean"][0], 100 * curve["standard_error"][0]
    row = papers.roth.TABLE_2.row(architecture="cnn7", method="snr")
    expected = (
        "cnn7 snr",
        "clean accuracy",
        f"{here:.1f} ± {error:.1f} %",
        f"{100 * row.accuracy:.1f} %",
        f"{here - 100 * row.accuracy:+.1f} points",
    )
    own, compared, *_ = _tables(_section(report, "table2"))
    assert expected in compared.rows
    assert ("cnn7 snr", f"{here:.1f} %") == (own.rows[3][0], own.rows[3][1])
    assert beside.table("spectrum", results) is None


def test_tables_that_need_more_than_the_file_are_those_beside_it(report, folder):
    (table, *_) = _tables(_section(report, "search_dense"))
    written = (folder / "search_dense" / "table.md").read_text().splitlines()
    cells = tuple(cell.strip() for cell in written[2].strip("|").split("|"))
    assert table.rows[0] == cells


def test_results_that_cannot_be_read_say_so(report):
    section = _section(report, _HOSTILE.replace("/", ""))
    notes = [b.text for b in section.blocks if isinstance(b, blocks.Note)]
    assert any("tables could not be made" in note for note in notes)
    assert any("Figures could not be drawn" in note for note in notes)


def test_figures_are_drawn_or_those_beside_the_file(report):
    drawn = [
        block
        for block in _section(report, "table2").blocks
        if isinstance(block, blocks.Figure)
    ]
    assert [figure.caption for figure in drawn] == ["accuracy L2", "accuracy Linf"]
    for figure in drawn:
        assert "--figure-ink" in figure.svg
        assert "accuracy (%)" in figure.alt
    (image,) = (
        block
        for block in _section(report, "compared").blocks
        if isinstance(block, blocks.Figure)
    )
    assert image.png == _png(30, 20)


def test_results_that_do_not_go_together_are_marked(report):
    notes = [block.text for block in report.lead if isinstance(block, blocks.Note)]
    assert any("different data" in note and _HOSTILE in note for note in notes)
    assert any("revisions" in note for note in notes)
    assert any("not committed" in note and "compared" in note for note in notes)


def test_trainings_have_their_state_and_missing_results_their_command(report):
    (table,) = _tables(next(s for s in report.sections if s.title == "Trainings"))
    states = {getattr(row[0], "text", row[0]): row[5] for row in table.rows}
    assert states == {
        "finished": "finished, 2 epochs",
        "partial": "partial: epoch 1.25 of 2",
        "search_dense/one": "partial: epoch 0.25 of 2",
    }
    (missing,) = (s for s in report.sections if s.anchor == "missing")
    (line,) = next(b for b in missing.blocks if isinstance(b, blocks.Bullets)).items
    assert line == "begun: spectrum has written no results, begun on 2026-01-02"
    (details,) = (b for b in missing.blocks if isinstance(b, blocks.Details))
    commands = [row[1] for row in details.parts[0].rows]
    assert "opnorm universal --run=RUN" in commands
    assert "opnorm equivalence" not in commands


def test_the_markdown_has_the_figures_as_files(report):
    written = markdown.write(report, "files")
    shown = re.findall(r"^!\[.*\]\(files/(.*)\)$", written, re.MULTILINE)
    assert len(shown) == len(set(shown)) == 5
    anchors = set(re.findall(r'<a id="(.*?)"></a>', written))
    assert set(re.findall(r"(?<!\\)\]\(#(.*?)\)", written)) <= anchors


def test_every_committed_file_of_results_is_known():
    found = search.find([str(_RESULTS)])
    files = {f.file.relative_to(_RESULTS).as_posix(): f.kind for f in found.results}
    kept = {file.relative_to(_RESULTS).as_posix() for file in _RESULTS.rglob("*.json")}
    # Those were written by a script, which is no command.
    scripts = {name for name in kept if name.startswith("clients/")}
    assert files.keys() == kept - scripts
    assert {problem.name for problem in found.problems} == scripts
    # By the beginning of the last folder that has one of these.
    named = {
        "attacks": "compare_attacks",
        "search": "equivalence",
        "table2": "reproduce",
        **{each: each for each in ("benchmark", "curvature", "equivalence")},
        **{each: each for each in ("interpolation", "linearity", "roofline")},
        **{each: each for each in ("spectrum", "sweep", "spectral_normalization")},
        "gradient_regularization": "gradient_regularization",
    }
    for name, kind in files.items():
        expected = [
            named[beginning]
            for folder in reversed(name.split("/")[:-1])
            for beginning in named
            if folder.startswith(beginning)
        ]
        assert expected[0] == kind, name


@pytest.mark.parametrize("content", [None, [], "spectrum", {}, {"experiment": [1]}])
def test_what_is_no_result_has_no_kind(content):
    assert kinds.kind(content) is None


def test_files_name_their_command_and_a_new_one_is_not_taken_for_another():
    results = {"networks": {}, "runs": {}, "split": "test"}
    assert kinds.kind(results) == "linearity"
    assert kinds.kind(results | {"experiment": "linearity"}) == "linearity"
    assert kinds.kind(results | {"experiment": "newer"}) is None
    origin = records.origin()
    assert isinstance(origin["experiment"], str)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", origin["written"])
    assert isinstance(origin["given"], dict)


@pytest.mark.parametrize(
    ("words", "command"),
    [
        (["/a/python3", "-m", "experiments.sweep", "--x"], ["opnorm", "sweep", "--x"]),
        (["/a/experiments/sweep/__main__.py", "--x"], ["opnorm", "sweep", "--x"]),
        (["/a/experiments/train.py"], ["opnorm", "train"]),
        (["/a/python", "/b/bin/opnorm", "train"], ["opnorm", "train"]),
        (["/a/python", "-m", "opnorm", "train"], ["opnorm", "train"]),
        (["/a/opnorm/__main__.py", "train"], ["opnorm", "train"]),
        (["/a/experiments/__main__.py", "train"], ["opnorm", "train"]),
        ([], None),
        ("train", None),
        ([1], None),
    ],
)
def test_a_command_is_written_as_it_is_called(words, command):
    assert settings.command({"command": words}) == command


def test_settings_that_differ_from_the_defaults_come_first():
    config = {"dataset": "cifar10_mini", "method": "standard", "epochs": 3}
    config |= {"learning_rate": 0.5, "p": "inf", "seed": 0}
    found = settings.of_run({"flags": config, "command": ["/a/experiments/train.py"]})
    table = next(block for block in found if isinstance(block, blocks.Table))
    assert ("learning_rate", "0.5") in table.rows
    assert ("p", "inf") in table.rows
    (rest,) = (block for block in found if isinstance(block, blocks.Details))
    assert ("seed", "0") in rest.parts[0].rows


def test_markdown_of_commands_is_read():
    text = (
        "# Title\n## Part\n\n| a | b |\n|---|:--|\n| **x** | `1` |\n| y |\n\n- c\n- d"
    )
    assert list(blocks.read_markdown(f"{text}\n\nwords\nmore")) == [
        blocks.Heading("Part"),
        blocks.Table(("a", "b"), (("x", "1"), ("y", ""))),
        blocks.Bullets(("c", "d")),
        blocks.Paragraph("words more"),
    ]


def test_colours_have_enough_contrast_in_light_and_in_dark():
    """WCAG 2.1: 4.5 for text, 3 for the grey lines of figures."""

    def luminance(color):
        color = "".join(2 * c for c in color) if len(color) == 3 else color
        levels = (int(color[i : i + 2], 16) / 255 for i in (0, 2, 4))
        linear = [
            v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in levels
        ]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    themes = re.findall(r":root \{(.*?)\}", style.CSS, re.DOTALL)
    assert len(themes) == 3
    for theme in themes:
        colors = dict(re.findall(r"--([a-z-]+): #([0-9a-f]+)", theme))
        pairs = [(n, on, 4.5) for n in ("ink", "soft", "link") for on in ("paper",)]
        pairs += [("ink", "shade", 4.5), ("link", "shade", 4.5), ("ink", "note", 4.5)]
        pairs += [("figure-ink", "paper", 4.5), ("figure-muted", "paper", 3)]
        for front, back, least in pairs:
            high, low = sorted(
                (luminance(colors[front]), luminance(colors[back])), reverse=True
            )
            assert (high + 0.05) / (low + 0.05) >= least, (front, back)
