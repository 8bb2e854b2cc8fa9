"""The tasks that several libraries are given; nothing here imports a library."""

import io
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

STANDARD = "standard step"
ADVERSARIAL = "adversarial step"
AMORTIZED = "SNR, amortized"
MATRIX = "Lanczos on a matrix"
JACOBIAN = "dense Jacobian"
# Names of ``compare_attacks.peers.ROWS`` by the task.
ATTACKS = {
    "PGA-10": "pgd_l2",
    "PGA-100": "pgd100_l2",
    "APGD-100": "apgd_l2",
    "DeepFool": "deepfool_l2",
    "AutoAttack": "auto_attack_l2",
}
# Length of perturbations in attacks and training, the default of ``Config``.
EPSILON = 0.5
ATTACK_STEPS = 10
_FILE = "given.zip"


class Task(NamedTuple):
    """A function to time.

    Attributes:
      name: of the task; every library has some.
      library: whose attack runs, where a module has those of several libraries.
      channels_last: layout of the images in memory, where there is a choice.
      threads: of PyTorch; XLA uses all processors that a process may use.
      width: of CNN7.
      folder: holds what :func:`write` wrote.
    """

    name: str
    library: str
    channels_last: bool
    threads: int
    width: int
    folder: str

    def load(self) -> dict[str, Any]:
        """Reads the arrays that all libraries are given.

        Returns:
          "images", "labels": a batch to train on, uint8 and int32; "test_images" and
          "test_labels": examples to attack. "params" and "batch_stats" are the trees of
          a CNN7.
        """
        found: dict[str, Any] = {}
        with zipfile.ZipFile(Path(self.folder) / _FILE) as file:
            for path in file.namelist():
                place = found
                *between, last = path.split("/")
                for key in between:
                    place = place.setdefault(key, {})
                place[last] = np.load(io.BytesIO(file.read(path)), allow_pickle=False)
        return found


def write(folder: Path, arrays: dict[str, Any]) -> None:
    """Writes a tree of arrays, for :meth:`Task.load`."""
    with zipfile.ZipFile(folder / _FILE, "w") as file:
        for path, array in _flat(arrays).items():
            content = io.BytesIO()
            np.save(content, array)
            file.writestr(path, content.getvalue())


def _flat(arrays: dict[str, Any], prefix: str = "") -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = {}
    for key, value in arrays.items():
        if isinstance(value, dict):
            found |= _flat(value, f"{prefix}{key}/")
        else:
            found[prefix + key] = np.asarray(value)
    return found
