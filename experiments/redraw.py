"""Draws the figures of results again, from the files beside them.

  opnorm redraw --results=experiments/results
  opnorm redraw --results=runs/snr --format=svg --out=figures

Every file of results below --results, and the metrics of every run, gets the figures
that the command made that wrote it. No network is opened and no number changes. Without
--out the figures are written beside their files. Files without figures are passed over.
"""

from pathlib import Path

from absl import flags

from experiments.common import cli, drawings, figures
from opnorm import runs

_RESULTS = flags.DEFINE_string(
    "results", None, "a file of results, or a folder with such files (required)"
)
_FORMAT = flags.DEFINE_enum(
    "format", figures.FORMATS[0], list(figures.FORMATS), "format of the figures"
)
_OUT = flags.DEFINE_string(
    "out", None, "a folder for the figures, with the folders of --results in it"
)
_DATA_NAMES = flags.DEFINE_multi_string(
    "data_name",
    [],
    "OLD=NEW: the name in figures of a data set that files name OLD, such as "
    "'pictures in cifar_jpeg=CIFAR-10 (JPEG-75)'",
)
_FILES = ("*.json", "metrics.jsonl")


def main() -> None:
    """Draws all figures, and prints the files."""
    if _RESULTS.value is None:
        raise ValueError("results is not given; give a file of results or a folder.")
    given = Path(_RESULTS.value)
    if not given.exists():
        raise ValueError(f"results is {given}; there is nothing.")
    names = _names()
    top = given if given.is_dir() else given.parent
    files = [given] if given.is_file() else [p for f in _FILES for p in top.rglob(f)]
    count = 0
    for path in sorted(files):
        place = path.parent
        if _OUT.value is not None:
            place = Path(_OUT.value) / place.relative_to(top)
        drawn = drawings.of_file(path, names)
        for written in figures.save(runs.RunDirectory(place), drawn, _FORMAT.value):
            print(written, flush=True)
            count += 1
    print(f"{count} figures written")


def _names() -> dict[str, str]:
    """Returns the names of --data_name."""
    for text in _DATA_NAMES.value:
        if "=" not in text:
            raise ValueError(f"data_name is {text!r}; it must be OLD=NEW.")
    return dict(text.split("=", 1) for text in _DATA_NAMES.value)


if __name__ == "__main__":
    cli.run(main)
