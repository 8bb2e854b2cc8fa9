"""Networks that differ in their seed alone, measured one by one and averaged.

With ``--seeds=0,1,2`` a name such as ``--run=runs/snr-seed{seed}`` stands for one
network for each seed. Means and errors are then those over the networks.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from absl import flags

from experiments.common import options, records
from experiments.common.records import Record
from opnorm import analysis

# Flags defined here belong to the binary that calls for them.
flags.disclaim_key_flags()

PLACE = "{seed}"
# Pairs of a number and its error, as records name them.
_PAIRS = (("mean", "standard_error"), ("value", "error"))


def define_flag() -> None:
    """Defines --seeds, which :func:`read` reads."""
    flags.DEFINE_list(
        "seeds",
        None,
        f"seeds of the networks that each {PLACE} in --run or --variables stands for, "
        f"as in --run=runs/snr-seed{PLACE} --seeds=0,1,2; figures and tables then give "
        "means over these networks, with standard errors",
    )


def read() -> tuple[int, ...] | None:
    """Returns the seeds that --seeds names, at least two; None without the flag.

    Raises:
      ValueError: for text that is no list of whole numbers, a seed that is given
        twice, or a single seed.
    """
    given = flags.FLAGS.seeds
    if given is None:
        return None
    found = options.parse_integers("seeds", given)
    options.check_each_once("seeds", found)
    if len(found) < 2:
        raise ValueError(f"seeds is {list(found)}; give two or more seeds.")
    return found


def names(flag: str, text: str, seeds: Sequence[int] | None) -> list[str]:
    """Returns the name of the network of each seed; without seeds the text itself.

    Args:
      flag: the flag whose value the text is, for errors.
      text: the value, with ``{seed}`` where seeds are given.
      seeds: the seeds, or None.

    Raises:
      ValueError: for ``{seed}`` without seeds, and seeds without ``{seed}``.
    """
    if seeds is None:
        if PLACE in text:
            raise ValueError(f"{flag} is {text}; {PLACE} needs --seeds.")
        return [text]
    if PLACE not in text:
        raise ValueError(
            f"{flag} is {text}; with --seeds it must have {PLACE} in the place of the "
            "seed."
        )
    return [text.replace(PLACE, str(seed)) for seed in seeds]


def average(found: Sequence[Record]) -> Record:
    """Returns the averages of all quantities of networks that differ in the seed.

    A mean becomes the mean over the networks, and its error that of
    :func:`records.over_networks`, which averages one quantity. Other numbers and lists
    become their means; of lists of different lengths the first places that all networks
    have. A number that one network lacks (NaN) is not known for all of them.

    Args:
      found: measurements of the same structure, at least one. One comes back as it is,
        with its errors over the examples.
    """
    if len(found) == 1:
        return found[0]
    merged: Record = _merge(found)
    return merged


def _merge(found: Sequence[Any]) -> Any:
    found = [e.tolist() if isinstance(e, np.ndarray) else e for e in found]
    first = found[0]
    if isinstance(first, Mapping):
        merged = {name: _merge([each[name] for each in found]) for name in first}
        for mean, error in _PAIRS:
            if mean in first and error in first:
                rows = _rows([each[mean] for each in found])
                one = [{"mean": row, "standard_error": None} for row in rows]
                merged[error] = records.over_networks(one)["standard_error"]
        return merged
    if all(each == first for each in found):
        return first
    return analysis.average(_rows(found)).mean.tolist()


def _rows(found: Sequence[Any]) -> np.ndarray:
    """Returns numbers, or lists of numbers cut to the shortest, one row a network."""
    if isinstance(found[0], list):
        length = min(map(len, found))
        found = [each[:length] for each in found]
    return np.array(found, np.float64)


def bands(results: Mapping[str, Any], count: str = "examples") -> str:
    """Returns words on the errors in results: over what they are, and over how many.

    Args:
      results: the content of results.json, with "seeds" where networks were averaged.
      count: the key of the number of images.
    """
    if results.get("seeds"):
        numbers = results["seeds"]
        return records.error_over(len(numbers), _unit(numbers))
    return records.error_over(results[count], "images")


def networks(results: Mapping[str, Any]) -> str:
    """Returns the number of networks that are averaged, and their seeds, as words."""
    return f"{len(results['seeds'])} {_unit(results['seeds'])}"


def _unit(numbers: Sequence[int]) -> str:
    return f"networks (seeds {', '.join(map(str, numbers))})"
