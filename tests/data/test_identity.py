"""A fingerprint follows the images, not their path."""

import dataclasses
import itertools
import shutil

import numpy as np
import pytest
from PIL import Image

from opnorm import data


@pytest.fixture
def root(tmp_path):
    rng = np.random.default_rng(0)
    for name, number in itertools.product("ab", range(3)):
        file = tmp_path / "here" / "train" / name / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(file)
    return tmp_path / "here"


def load(root):
    return data.load(f"folder:{root}", split="train")


def stream(root, limit=None):
    return data.open_stream(f"image_folder:{root}", split="train", limit=limit)


@pytest.mark.parametrize("source", [load, stream])
def test_a_copy_is_the_same_and_a_change_is_not(source, root):
    found = data.fingerprint(source(root))
    assert found["examples"] == 6
    copy = root.with_name("there")
    shutil.copytree(root, copy)
    assert data.fingerprint(source(copy)) == found
    # Moved files have the other label, since folders name the labels.
    shutil.move(copy / "train/a/0.png", copy / "train/b/9.png")
    moved = data.fingerprint(source(copy))
    assert moved["examples"] == 6
    assert moved["digest"] != found["digest"]
    shutil.copy(root / "train/a/0.png", copy / "train/a/0.png")
    added = data.fingerprint(source(copy))
    assert added["examples"] == 7


def test_another_resolution_and_another_draw_are_other_data(root):
    found = data.fingerprint(stream(root))
    drawn = [data.fingerprint(stream(root, limit)) for limit in (3, 4)]
    assert [each["examples"] for each in drawn] == [3, 4]
    file = root / "train" / "b" / "1.png"
    Image.open(file).resize((4, 4)).save(file)
    assert data.fingerprint(stream(root))["digest"] != found["digest"]


def test_every_byte_counts_in_memory(root):
    whole = load(root)
    found = data.fingerprint(whole)
    images, labels = whole.images.copy(), whole.labels.copy()
    images[-1, -1, -1, -1] ^= 1
    labels[0] = 1 - labels[0]
    for change in ({"images": images}, {"labels": labels}):
        assert data.fingerprint(dataclasses.replace(whole, **change)) != found
    # The order in memory does not change the fingerprint.
    turned = np.asfortranarray(whole.images)
    assert data.fingerprint(dataclasses.replace(whole, images=turned)) == found
