"""The commands that a report shows: the question of each, and how its tables are made.

The files with tables are imported when a result needs them: most need JAX, and some
define flags.
"""

import importlib
import re
from collections.abc import Callable
from typing import Any, NamedTuple

from experiments.common.records import Record


class Entry(NamedTuple):
    """The words of a report on the results of a command.

    Attributes:
      title: the heading of its results.
      question: what they answer.
      command: how the command is called; empty for results of another entry's command.
      errors: what standard errors are over, where the tables do not say so.
      figures: the names of figures that may lie beside it, as a regular expression.
    """

    title: str
    question: str
    command: str
    errors: str = ""
    figures: str = ".*"


ENTRIES = {
    "equivalence": Entry(
        "Adversarial training and data-dependent norm regularisation",
        "Are adversarial training and data-dependent norm regularisation equivalent? "
        "(Roth et al. 2020, main claim)",
        "equivalence",
        "Cells list the networks by seed. Bands in figures are standard errors over "
        "the images, averaged over the networks.",
    ),
    "reproduce": Entry(
        "Table 2 of Roth et al.",
        "Do the methods reach the accuracies of the paper? (Roth et al. 2020, Table 2)",
        "reproduce",
        figures="accuracy_.*",
    ),
    "reproduce_iterations": Entry(
        "Global SNR with 1 and with 10 power iterations",
        "Does global SNR with one power iteration do what it does with ten? (Roth et "
        "al. 2020, Figs 10 and 11)",
        "reproduce --iterations",
        figures="figure_1[01]",
    ),
    "interpolation": Entry(
        "From adversarial training to data-dependent SNR",
        "How do the methods change into each other along step size and mixture? (Roth "
        "et al. 2020, Figs 6 and 7)",
        "interpolation --sweep=mix",
    ),
    "spectrum": Entry(
        "Singular values and alignment",
        "Which directions does a network amplify, and do attacks point along them? "
        "(Roth et al. 2020, Figs 2 and 3)",
        "spectrum --run=RUN",
    ),
    "linearity": Entry(
        "Linearity around images",
        "How linear is a network around an image? (Roth et al. 2020, Figs 4 and 5)",
        "linearity --run=RUN",
    ),
    "curvature": Entry(
        "Curvature of the loss",
        "How curved is the loss, in the parameters and in the input?",
        "curvature --run=RUN",
    ),
    "universal": Entry(
        "Universal perturbations",
        "Does one perturbation fool a network on many images, and is it the singular "
        "vector of the stacked Jacobians? (Khrulkov & Oseledets 2017)",
        "universal --run=RUN",
    ),
    "gradient_regularization": Entry(
        "Input-gradient regularisation",
        "Does a penalty on input gradients move adversarial examples away? (Finlay & "
        "Oberman 2019, Tables 1 to 4)",
        "gradient_regularization",
    ),
    "spectral_normalization": Entry(
        "Spectral normalisation",
        "Do networks with bounded layers generalise better under attack? (Farnia et "
        "al. 2019, Tables 1 to 3)",
        "spectral_normalization",
    ),
    "regularization_view": Entry(
        "Regularisation view of adversarial robustness",
        "How does adversarial training change gaps, margins and singular values? "
        "(paper U, Tables 1 to 6)",
        "regularization_view --train",
    ),
    "evaluate": Entry(
        "Evaluation of a trained network",
        "How accurate is a network under attack, and how far are the nearest "
        "adversarial examples?",
        "evaluate --run=RUN",
        figures="(accuracy|distances|singular_values).*",
    ),
    "card": Entry(
        "Standard evaluation",
        "How robust is a network in the evaluation of public leaderboards?",
        "evaluate --run=RUN --card=Linf",
        figures="(?!)",
    ),
    "transfer": Entry(
        "Transfer of adversarial images",
        "Do images that were made for another network fool this one?",
        "evaluate --run=RUN --transfer=FILE",
        figures="(?!)",
    ),
    "compare_attacks": Entry(
        "Attacks of several libraries",
        "Are the attacks as strong and as fast as those of other libraries?",
        "compare_attacks --run=RUN",
    ),
    "benchmark": Entry(
        "Cost of kernels and train steps",
        "How long do kernels and train steps take, beside simpler ones and beside "
        "other libraries?",
        "benchmark",
        "Times are medians over rounds that alternate between the tasks.",
    ),
    "roofline": Entry(
        "Limits of an accelerator",
        "How fast can an accelerator take a train step?",
        "roofline",
        "Computed and not measured, so that there are no errors.",
    ),
    "sweep": Entry(
        "Networks for every point of a grid",
        "Which settings of a training are best?",
        "sweep --directory=DIRECTORY --grid=GRID",
    ),
}


def tables(kind: str, results: Record) -> str | None:
    """Returns the tables of results as Markdown; None where the file is not enough.

    Args:
      kind: as ``kinds.kind`` returns it.
      results: the content of the file. Anything may be in it, so that any exception may
        be raised.
    """
    make = _TABLES.get(kind)
    return None if make is None else make(results)


def _from(module: str, function: str = "text") -> Callable[..., str]:
    """Returns a function of a file that is imported when it is called."""

    def call(*arguments: Any) -> str:
        found = importlib.import_module(f"experiments.{module}")
        text: str = getattr(found, function)(*arguments)
        return text

    return call


def _reproduce(results: Record) -> str:
    # Earlier files have no comparisons of rows.
    whole = "verdicts" in results
    return _from("reproduce.tables", "text" if whole else "make_table")(results)


def _linearity(results: Record) -> str:
    trained = results.get("training_epsilons", {}).get("L2", [])
    return _from("linearity.tables")(results, trained)


def _card(card: Record) -> str:
    from opnorm import reports

    return reports.card_text(card)


# The slowest kinds of kernels of each step that are shown.
_KERNELS = 8
_TABLES: dict[str, Callable[[Record], str]] = {
    "reproduce": _reproduce,
    "reproduce_iterations": _from("reproduce.iterations"),
    "interpolation": _from("interpolation.tables", "make_table"),
    "spectrum": _from("spectrum.tables"),
    "linearity": _linearity,
    "curvature": _from("curvature.tables"),
    "gradient_regularization": _from("gradient_regularization.tables"),
    "spectral_normalization": _from("spectral_normalization.tables"),
    "regularization_view": _from("regularization_view.tables"),
    "evaluate": _from("evaluate.tables"),
    "card": _card,
    "transfer": _from("evaluate.tables", "transfer_text"),
    "compare_attacks": lambda results: _from("compare_attacks.tables")(results["rows"]),
    "benchmark": _from("benchmark.tables"),
    "roofline": lambda results: _from("roofline.tables")(results, _KERNELS),
    "sweep": _from("sweep.tables"),
}
# Where a file is not enough, the tables that its command wrote beside it are shown.
WRITTEN = ("table.md", "tables.md")


def fits(entry: Entry, figure: str) -> bool:
    """Whether a figure beside the results of an entry may be one of them."""
    return figure != "training" and re.fullmatch(entry.figures, figure) is not None
