"""data: datasets as arrays in memory, batches of them, augmentation on the device.

Imports nothing of ours. Image decoding and TensorFlow Datasets are imported when they
are used.
"""

from opnorm.data.augmentation import (
    Augmentation,
    apply_augmentation,
    augment,
    invert_augmentation,
    sample_augmentation,
)
from opnorm.data.dataset import Dataset, to_float
from opnorm.data.sampling import batch_indices, epoch_permutation, steps_per_epoch
from opnorm.data.sources import NAMES, SPLITS, check_name, load

__all__ = [
    "NAMES",
    "SPLITS",
    "Augmentation",
    "Dataset",
    "apply_augmentation",
    "augment",
    "batch_indices",
    "check_name",
    "epoch_permutation",
    "invert_augmentation",
    "load",
    "sample_augmentation",
    "steps_per_epoch",
    "to_float",
]
