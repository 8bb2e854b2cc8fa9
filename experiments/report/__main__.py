"""Makes one page of all results below folders.

  opnorm report --runs=runs --out=report.html
  opnorm report --runs=runs/equivalence --runs=runs/snr --out=report.html

Writes one HTML page that needs nothing else, and the same as Markdown: report.md, with
its figures in report_files/. The page has a section for each file of results, with the
question, tables, the paper's numbers with differences, figures, settings, hardware and
revision, and a table of all trainings. It says what is missing, what did not end, and
which files it cannot show. Results of different data or revisions are marked.

Files are read as JSON, and nothing in them is executed. Tables and figures are made of
them anew; where that is not possible, the Markdown and the images beside the file are
shown.
"""

from pathlib import Path

from absl import flags

from experiments.common import cli
from experiments.report import contents, markdown, page, search
from experiments.report.blocks import Block, Details, Figure, Report
from opnorm import runs

_RUNS = flags.DEFINE_multi_string(
    "runs",
    None,
    "folder of results, searched with all folders in it; may be given several times "
    "(required)",
)
_OUT = flags.DEFINE_string(
    "out", "report.html", "the page to write; the Markdown has the same name"
)


def main() -> None:
    """Finds the results and writes the report."""
    if not _RUNS.value:
        raise ValueError("runs is not given; it is a folder of results.")
    out = Path(_OUT.value)
    if out.suffix != ".html":
        raise ValueError(f"out is {out}; its name must end with .html.")
    if out.is_dir() or not out.parent.is_dir():
        raise ValueError(f"out is {out}; it must be a file in a folder that is there.")
    findings = search.find(_RUNS.value)
    made = contents.make(findings, _RUNS.value)
    runs.write_whole(out, page.write(made))
    text = out.with_suffix(".md")
    folder = _write_figures(made, out.with_name(f"{out.stem}_files"))
    runs.write_whole(text, markdown.write(made, folder.name))
    print(
        f"{len(findings.results)} files of results, {len(findings.runs)} trainings, "
        f"{len(findings.problems)} files that are not shown\nwritten to {out} and "
        f"{text}"
    )


def _write_figures(report: Report, folder: Path) -> Path:
    """Writes the figures of the Markdown as files, and returns their folder."""
    sections = [block for section in report.sections for block in section.blocks]
    found = list(_figures(sections))
    runs.RunDirectory.for_results(folder)
    if found:
        folder.mkdir(exist_ok=True)
    for figure in found:
        content = figure.png if figure.svg is None else page.file_svg(figure.svg)
        runs.write_whole(folder / markdown.file_name(figure), content or b"")
    return folder


def _figures(blocks: list[Block]) -> list[Figure]:
    found = []
    for block in blocks:
        if isinstance(block, Figure):
            found.append(block)
        elif isinstance(block, Details):
            found += _figures(list(block.parts))
    return found


if __name__ == "__main__":
    cli.run(main)
