"""Symmetric matrices with given spectra."""

import numpy as np


def with_spectrum(values, seed=0, batch=2):
    """A batch of symmetric matrices with the given eigenvalues."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(batch):
        basis, _ = np.linalg.qr(rng.normal(size=(len(values), len(values))))
        matrix = basis * np.asarray(values) @ basis.T
        found.append((matrix + matrix.T) / 2)
    return np.array(found)
