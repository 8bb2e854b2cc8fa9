"""Reading of arrays: two formats without PyTorch, PyTorch, and broken files."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from opnorm import models

ARRAYS = {
    "a.weight": np.arange(6, dtype=np.float32).reshape(2, 3) / 7,
    "b": np.array([1.5, -2], np.float16),
    "steps": np.array(3, np.int64),
    "half": np.array([[1.0, 3.0]], jnp.bfloat16),
}
DTYPES = {"float32": "F32", "float16": "F16", "int64": "I64", "bfloat16": "BF16"}


def safetensors(arrays):
    """A file as the format's description says, written without the library."""
    header, numbers = {"__metadata__": {"format": "pt"}}, b""
    for name, array in arrays.items():
        start = len(numbers)
        numbers += array.tobytes()
        header[name] = {
            "dtype": DTYPES[str(array.dtype)],
            "shape": list(array.shape),
            "data_offsets": [start, len(numbers)],
        }
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + numbers


def same(found, expected):
    assert set(found) == set(expected)
    for name, array in expected.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)


def test_safetensors_are_read_as_described(tmp_path):
    path = tmp_path / "a.safetensors"
    path.write_bytes(safetensors(ARRAYS))
    same(models.read_arrays(path), ARRAYS)


def test_safetensors_of_the_library_are_read(tmp_path):
    library = pytest.importorskip("safetensors.numpy")
    plain = {name: array for name, array in ARRAYS.items() if name != "half"}
    library.save_file(plain, tmp_path / "a.safetensors")
    same(models.read_arrays(tmp_path / "a.safetensors"), plain)


def test_npz_is_read_and_objects_in_it_are_refused(tmp_path):
    plain = {name: array for name, array in ARRAYS.items() if name != "half"}
    np.savez(tmp_path / "a.npz", **plain)
    same(models.read_arrays(str(tmp_path / "a.npz")), plain)
    np.savez(tmp_path / "b.npz", a=np.array([{}], object))
    with pytest.raises(ValueError, match=r"b.npz is no .npz file of plain arrays"):
        models.read_arrays(tmp_path / "b.npz")


def test_broken_files_are_refused(tmp_path):
    with pytest.raises(ValueError, match="there is no such file"):
        models.read_arrays(tmp_path / "none.npz")
    whole = safetensors(ARRAYS)
    length = int.from_bytes(whole[:8], "little")
    beyond = whole[8 : 8 + length].replace(b"[0, 24]", b"[0, 99]")
    cases = {
        "cut off": (whole[:4], (2**60).to_bytes(8, "little") + b"{}"),
        "do not hold shape": (whole[:-30], whole[:8] + beyond + whole[8 + length :]),
        "dtype F31 is none of": (whole.replace(b"F32", b"F31"),),
        "is no .safetensors file": (b"\2\0\0\0\0\0\0\0[]", b"\2\0\0\0\0\0\0\0x}"),
    }
    path = tmp_path / "a.safetensors"
    for message, contents in cases.items():
        for content in contents:
            path.write_bytes(content)
            with pytest.raises(ValueError, match=message):
                models.read_arrays(path)


def test_files_of_pytorch_give_tensors_and_run_no_code(tmp_path):
    torch = pytest.importorskip("torch")
    tensors = {name: torch.tensor(a.astype(np.float32)) for name, a in ARRAYS.items()}
    wide = {name: array.astype(np.float32) for name, array in ARRAYS.items()}
    half = tensors | {"half": tensors["half"].bfloat16()}
    path = tmp_path / "a.pt"
    for content in (tensors, half, {"epoch": 3, "model": tensors}):
        torch.save(content, path)
        same(models.read_arrays(path), wide)
    torch.save({"model": tensors, "ema": tensors}, path)
    with pytest.raises(ValueError, match=r"several.*one of model, ema"):
        models.read_arrays(path)
    same(models.read_arrays(path, entry="ema"), wide)
    with pytest.raises(ValueError, match=r"entry is 'x'; .* has model, ema"):
        models.read_arrays(path, entry="x")
    torch.save({"lr": 1}, path)
    with pytest.raises(ValueError, match="holds no dictionaries of tensors"):
        models.read_arrays(path)

    class Evil:
        def __reduce__(self):
            return print, ("code ran",)

    torch.save({"a": tensors["b"], "evil": Evil()}, path)
    with pytest.raises(ValueError, match="cannot be read as a PyTorch file"):
        models.read_arrays(path)
