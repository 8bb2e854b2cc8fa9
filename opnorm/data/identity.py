"""Fingerprints of data, by which a run notices that its data have changed."""

import hashlib

import numpy as np

from opnorm.data.dataset import Dataset
from opnorm.data.streaming import Stream


def fingerprint(source: Dataset | Stream) -> dict[str, int | str]:
    """Computes the identity of the examples of a data set, wherever they lie.

    Args:
      source: data in memory, whose images and labels count; or streamed data, whose
        listing counts: names, labels, and the sizes of a thousand files.

    Returns:
      "examples", their number, and "digest", a string; JSON can hold both.
    """
    digest = hashlib.sha256()
    if isinstance(source, Dataset):
        for array in (source.images, source.labels):
            digest.update(f"{array.shape} {array.dtype}".encode())
            digest.update(np.ascontiguousarray(array).data.cast("B"))
    else:
        kept = np.arange(len(source)) if source.kept is None else source.kept
        for line in source.encoded.listing(kept):
            digest.update(f"{line}\n".encode())
    return {"examples": len(source), "digest": digest.hexdigest()[:32]}
