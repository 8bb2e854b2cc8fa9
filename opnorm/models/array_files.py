"""Arrays by name from files of other libraries; no file can run code."""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from opnorm import extras

AnyPath = str | os.PathLike[str]
# The dtypes of the format safetensors that NumPy and JAX have.
_DTYPES: dict[str, Any] = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": jnp.bfloat16,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U64": np.uint64,
    "U32": np.uint32,
    "U16": np.uint16,
    "U8": np.uint8,
    "BOOL": np.bool_,
}
# A header holds names and shapes; a longer one is another kind of file.
_LONGEST_HEADER = 100_000_000


def read_arrays(path: AnyPath, *, entry: str | None = None) -> dict[str, np.ndarray]:
    """Reads the arrays of a file of weights.

    Args:
      path: ``.safetensors`` or ``.npz``; any other file is read as PyTorch's, which
        needs PyTorch 2.6 or newer and is read with ``weights_only=True``.
      entry: name of the entry of a PyTorch file that holds the state dict, such as
        "model_state_dict"; None where the file has only one.

    Returns:
      The arrays by their names in the file.

    Raises:
      ValueError: if there is no such file, the file is not of its format, or holds
        objects other than arrays.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"path is {str(path)!r}; there is no such file.")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    if path.suffix == ".npz":
        return _read_npz(path)
    return _read_state_dict(path, entry)


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as found:
            return dict(found)
    except (ValueError, OSError) as error:
        raise ValueError(f"{path} is no .npz file of plain arrays: {error}") from error


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    """Reads 8 bytes for the header's length, the header in JSON, and the numbers."""
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    if len(content) < 8 or length > min(_LONGEST_HEADER, len(content) - 8):
        raise ValueError(f"{path} is no .safetensors file: its header is cut off.")
    try:
        header = json.loads(content[8 : 8 + length])
        entries = {k: v for k, v in header.items() if k != "__metadata__"}
        numbers = memoryview(content)[8 + length :]
        return {name: _tensor(entry, numbers) for name, entry in entries.items()}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{path} is no .safetensors file: {error}") from error


def _tensor(entry: Mapping[str, Any], numbers: memoryview) -> np.ndarray:
    if entry["dtype"] not in _DTYPES:
        raise ValueError(f"dtype {entry['dtype']} is none of {', '.join(_DTYPES)}.")
    dtype = np.dtype(_DTYPES[entry["dtype"]])
    start, stop = entry["data_offsets"]
    shape = tuple(entry["shape"])
    if not 0 <= start <= stop <= len(numbers) or (
        stop - start != math.prod(shape) * dtype.itemsize
    ):
        raise ValueError(f"bytes {start} to {stop} do not hold shape {shape}.")
    array = np.frombuffer(numbers[start:stop], dtype.newbyteorder("<"))
    return array.reshape(shape).astype(dtype)


def _read_state_dict(path: Path, entry: str | None) -> dict[str, np.ndarray]:
    # Files .safetensors and .npz need no PyTorch.
    with extras.needed(f"opnorm.models.read_arrays of {path}", extra="torch"):
        import torch
    if tuple(int(part) for part in torch.__version__.split(".")[:2]) < (2, 6):
        raise ValueError(
            f"PyTorch is {torch.__version__}; it must be 2.6 or newer, since older "
            "ones may run code of a file."
        )
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # The reasons have many types.
        raise ValueError(
            f"{path} cannot be read as a PyTorch file of tensors alone: {error} "
            "torch.save(module.state_dict(), path) writes such a file."
        ) from error
    tensors = _state_dict(path, found, entry, torch.Tensor)
    return {name: _as_array(torch, tensor) for name, tensor in tensors.items()}


def _as_array(torch: Any, tensor: Any) -> np.ndarray:
    # NumPy has no bfloat16.
    plain = tensor.float() if tensor.dtype == torch.bfloat16 else tensor
    array: np.ndarray = plain.detach().numpy()
    return array


def _state_dict(
    path: Path, found: Any, entry: str | None, tensor: type
) -> dict[str, Any]:
    def tensors(tree: Any) -> dict[str, Any]:
        items = tree.items() if isinstance(tree, Mapping) else ()
        return {str(name): leaf for name, leaf in items if isinstance(leaf, tensor)}

    parts = found if isinstance(found, Mapping) else {}
    if entry is not None:
        if not tensors(parts.get(entry)):
            known = ", ".join(map(str, parts)) or "none"
            raise ValueError(f"entry is {entry!r}; {path} has {known}.")
        return tensors(parts[entry])
    if tensors(found):
        return tensors(found)
    names = [str(name) for name, part in parts.items() if tensors(part)]
    if len(names) != 1:
        raise ValueError(
            f"{path} holds {'several' if names else 'no'} dictionaries of tensors"
            + (f"; entry must be one of {', '.join(names)}." if names else ".")
        )
    return tensors(parts[names[0]])
