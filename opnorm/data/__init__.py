"""Data sets in memory and on disk, their batches, and augmentation on the device.

This room imports no other room. Image decoding, TensorFlow Datasets and grain are
imported when they are used.
"""

from opnorm.data.augmentation import (
    PADDINGS,
    Augmentation,
    apply_augmentation,
    augment,
    invert_augmentation,
    sample_augmentation,
)
from opnorm.data.checking import check_images, check_splits
from opnorm.data.dataset import Dataset, randomize_labels, to_float
from opnorm.data.holding_out import split_validation
from opnorm.data.identity import fingerprint
from opnorm.data.prefetching import prefetch
from opnorm.data.sampling import batch_indices, epoch_permutation, steps_per_epoch
from opnorm.data.sources import NAMES, SPLITS, check_name, load
from opnorm.data.streaming import Stream, is_streamed, open_stream

__all__ = [
    "NAMES",
    "PADDINGS",
    "SPLITS",
    "Augmentation",
    "Dataset",
    "Stream",
    "apply_augmentation",
    "augment",
    "batch_indices",
    "check_images",
    "check_name",
    "check_splits",
    "epoch_permutation",
    "fingerprint",
    "invert_augmentation",
    "is_streamed",
    "load",
    "open_stream",
    "prefetch",
    "randomize_labels",
    "sample_augmentation",
    "split_validation",
    "steps_per_epoch",
    "to_float",
]
