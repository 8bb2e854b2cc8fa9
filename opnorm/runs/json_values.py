"""Results as JSON, and JSON files that somebody else may have written."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

# Flags and results are flat; a file that is nested deeper is not one of ours.
_DEEPEST = 32

# A value of a JSON file: None, a boolean, number, string, list or dictionary. A type of
# all these would have to be narrowed wherever a field is read.
Json = Any
JsonObject = dict[str, Json]


def as_json(value: object) -> Json:
    """Returns a value as it is when it was written as JSON and read again.

    Arrays become lists and numbers, tuples lists, NaN null, infinity a string.
    """
    return json.loads(json.dumps(plain(value)))


def plain(value: object) -> Json:
    """Returns arrays as numbers and lists, NaN as None, infinity as a string."""
    if isinstance(value, Mapping):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, np.ndarray | np.generic | jax.Array):
        array = np.asarray(value)
        # Numbers that are not NumPy's own, such as bfloat16.
        array = array.astype(np.float32) if array.dtype.kind == "V" else array
        return plain(array.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        # A number that is not known, such as the error of one example, is null.
        return None if math.isnan(value) else str(value)
    if isinstance(value, Path):
        return str(value)
    return value


def read(file: Path) -> Json:
    """Reads a JSON file that somebody else may have written.

    Raises:
      FileNotFoundError: if it is not there.
      ValueError: naming the file, if it is damaged or nested too deeply.
    """
    text = file.read_bytes()
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError(f"{file} is damaged: it is nested too deeply.") from None
    except ValueError as error:
        raise ValueError(f"{file} is damaged: {error}.") from error
    level, depth = [value], 0
    while level:
        depth += 1
        if depth > _DEEPEST:
            raise ValueError(f"{file} is damaged: it is nested too deeply.")
        level = [
            item
            for each in level
            if isinstance(each, dict | list)
            for item in (each.values() if isinstance(each, dict) else each)
        ]
    return value
