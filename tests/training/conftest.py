"""Fixtures that tests of training share, such as data that stop a run halfway."""

import dataclasses

import numpy as np
import pytest

from opnorm import data


@pytest.fixture(scope="module")
def train_set():
    """48 of the embedded images."""
    return data.load("cifar10_mini", split="train", limit=48)


@pytest.fixture(scope="session")
def interrupt():
    """``(dataset, after) -> dataset`` that stops the run after some batches."""
    return _interrupt


def _interrupt(dataset, after):
    """A data set that stops the run after some batches, as Ctrl-C would."""
    images = dataset.images.view(_Interrupting)
    images.left = after
    return dataclasses.replace(dataset, images=images)


class _Interrupting(np.ndarray):
    left = None

    def __getitem__(self, place):
        if self.left is not None:
            if self.left == 0:
                raise KeyboardInterrupt
            self.left -= 1
        return np.asarray(super().__getitem__(place))
