"""Which command wrote a file of results, by what the file holds.

A file names its command under "experiment". Files of earlier versions do not, and are
told apart by their keys.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple


class _Kind(NamedTuple):
    """Files of one form.

    Attributes:
      name: name of the kind, as :func:`kind` returns it.
      experiment: name of the command.
      keys: keys that every such file has, and that together no other file has.
    """

    name: str
    experiment: str
    keys: frozenset[str]


def _kinds(table: Mapping[str, str]) -> tuple[_Kind, ...]:
    found = []
    for name, keys in table.items():
        experiment = _EXPERIMENTS.get(name, name)
        found.append(_Kind(name, experiment, frozenset(keys.split())))
    return tuple(found)


# Commands that write files of several kinds.
_EXPERIMENTS = {
    "reproduce_iterations": "reproduce",
    "card": "evaluate",
    "transfer": "evaluate",
}
_KINDS = _kinds(
    {
        "card": "format robust_accuracy deviations clean_accuracy",
        "transfer": "set attacked success",
        "evaluate": "attacks best_known clean_accuracy",
        "reproduce_iterations": "rows random_alignment epsilons",
        "reproduce": "rows train_examples test_examples",
        "equivalence": "methods flags seeds",
        "interpolation": "sweep points epsilon",
        "spectrum": "networks alignment_examples expected_random_alignment",
        "universal": "networks fit_examples layer",
        "curvature": "networks num_probes train_examples",
        "gradient_regularization": "networks paper largest epsilons",
        "linearity": "networks runs split",
        "spectral_normalization": "schemes methods train_measured",
        "regularization_view": "recipes claims settings rows",
        "compare_attacks": "rows largest_logit_difference",
        "roofline": "chip steps rate",
        "benchmark": "ratios seconds traces",
        "sweep": "points measurement base",
    }
)


def kind(results: Any) -> str | None:
    """Returns the kind of a file of results.

    Args:
      results: the content of a JSON file, of whatever origin.

    Returns:
      The name of the command that wrote it, or "reproduce_iterations", "card" or
      "transfer"; None for anything else.
    """
    if not isinstance(results, dict):
        return None
    experiment = results.get("experiment")
    for each in _KINDS:
        fits = experiment is None or experiment == each.experiment
        if fits and each.keys <= results.keys():
            return each.name
    return None
