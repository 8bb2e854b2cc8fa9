"""Sets of adversarial images as files: what was saved is what is read."""

import json
import math
import pickle

import chex
import jax
import numpy as np
import pytest
from PIL import Image

from opnorm import attacks, reports

COUNT, SHAPE = 12, (4, 4, 3)
EPSILON = 3 / 255


def network(weights, x):
    z = x.reshape(len(x), -1) @ weights
    return jax.numpy.stack([z, -z], axis=1)


def pga(epsilon):
    return attacks.pga(p=math.inf, epsilon=epsilon, num_steps=3, random_start=False)


def make():
    draws = np.random.default_rng(0)
    weights = draws.normal(size=math.prod(SHAPE)).astype(np.float32)
    weights -= weights.mean()
    f = jax.tree_util.Partial(network, weights)
    images = draws.integers(0, 256, (COUNT, *SHAPE)).astype(np.uint8)
    return f, images, np.arange(COUNT, dtype=np.int32) % 2


def attacked(quantize):
    f, images, labels = make()
    return reports.adversarial_examples(
        f,
        images,
        labels,
        attack=pga,
        epsilon=EPSILON,
        quantize=quantize,
        data="drawn",
        key=jax.random.key(0),
    )


@pytest.mark.parametrize(
    ("quantize", "name"), [(None, "set.npz"), (255, "set.npz"), (255, "folder")]
)
def test_a_set_is_read_as_it_was_saved(quantize, name, tmp_path):
    """The images are those of the network's mistakes, within the budget, bit by bit."""
    f, images, labels = make()
    found = attacked(quantize)
    path = tmp_path / name
    for _ in range(2):  # An earlier set is replaced.
        reports.save_examples(path, found)
    again = reports.load_examples(path)
    chex.assert_trees_all_equal(again, found)
    for one, other in zip(again[:6], found[:6], strict=True):
        assert one.dtype == other.dtype
    weights = np.asarray(f.args[0], np.float64)
    values = again.x_adv / (255.0 if quantize else 1.0)
    margin = np.where(labels == 0, 1, -1) * (values.reshape(COUNT, -1) @ weights)
    np.testing.assert_array_equal(again.adversarial, margin < 0)
    assert again.adversarial.any()
    assert not again.adversarial.all()
    assert (again.attack, again.data, again.epsilon) == ("pga", "drawn", EPSILON)
    if quantize:
        np.testing.assert_array_equal(again.images, images)
        change = np.abs(again.x_adv.astype(int) - images)
        assert change.max() == 3
        failed = ~again.adversarial
        np.testing.assert_array_equal(again.x_adv[failed], images[failed])


def test_what_rounding_lost_is_said():
    """The budget is below one step of 8 bits, so that only mistakes at x are left."""
    f, images, labels = make()
    margin = np.where(labels == 0, 1, -1) * (
        (images / 255).reshape(COUNT, -1) @ np.asarray(f.args[0])
    )
    tiny = 0.4 / 255
    reach = tiny * np.abs(f.args[0]).sum()
    x_adv = (images / 255).astype(np.float32)
    fallen = margin < 0.9 * reach
    found = reports.ExampleSet(
        images, x_adv, labels, fallen, np.zeros(COUNT, bool), labels, math.inf, tiny
    )
    rounded = reports.quantize_examples(f, found)
    np.testing.assert_array_equal(rounded.adversarial, margin < 0)
    np.testing.assert_array_equal(rounded.lost, fallen & (margin > 0))
    np.testing.assert_array_equal(rounded.x_adv, images)


def test_files_of_other_programs_are_read(tmp_path):
    images = np.full((2, 5), 0.5, np.float32)
    fields = {"images": images, "x_adv": images + np.float32(0.1), "labels": [0, 1]}
    np.savez(tmp_path / "a.npz", **fields, p=math.inf, epsilon=0.1)
    found = reports.load_examples(tmp_path / "a.npz")
    assert found.adversarial.all()
    assert not found.lost.any()
    np.testing.assert_array_equal(found.number, [0, 1])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"x_adv": np.ones((2, 4), np.float32)}, r"x_adv has shape \(2, 4\)"),
        ({"images": np.ones((2, 5), np.float64)}, "images has .*float64"),
        ({"labels": np.array([0.5, 1])}, "labels has .*integer"),
        ({"labels": np.array([-1, 1])}, "labels has values"),
        ({"labels": np.array(["a", "b"])}, "labels has .*integer"),
        ({"adversarial": np.ones(3, bool)}, r"adversarial has shape \(3,\)"),
        ({"epsilon": 0.05}, "2 of 2 attacked images are further"),
        ({"epsilon": np.nan}, "epsilon is nan"),
        ({"p": 0.5}, "p is 0.5"),
        ({"p": "two"}, "must be numbers"),
        ({"x_adv": np.full((2, 5), np.nan, np.float32)}, "x_adv has values"),
        ({"images": np.array([{}, {}])}, "plain arrays"),
        ({"format": 9}, "another format"),
        ({"labels": None}, "has no labels"),
    ],
)
def test_files_that_do_not_hold_together_are_refused(change, words, tmp_path):
    images = np.full((2, 5), 0.5, np.float32)
    fields = {
        "images": images,
        "x_adv": images + np.float32(0.1),
        "labels": np.array([0, 1]),
        "p": math.inf,
        "epsilon": 0.1,
    } | change
    kept = {name: value for name, value in fields.items() if value is not None}
    np.savez(tmp_path / "a.npz", **kept)
    with pytest.raises(ValueError, match=words) as error:
        reports.load_examples(tmp_path / "a.npz")
    assert "a.npz" in str(error.value)


def test_files_that_are_no_sets_are_refused(tmp_path):
    (tmp_path / "a.npz").write_bytes(pickle.dumps({"x": 1}))
    with pytest.raises(ValueError, match=r"a\.npz is no \.npz file"):
        reports.load_examples(tmp_path / "a.npz")
    with pytest.raises(FileNotFoundError, match="no such file"):
        reports.load_examples(tmp_path / "b.npz")
    (tmp_path / "c").mkdir()
    with pytest.raises(ValueError, match=r"no examples\.json"):
        reports.load_examples(tmp_path / "c")
    (tmp_path / "c" / "other.txt").write_text("mine")
    found = attacked(255)
    with pytest.raises(ValueError, match="new, empty"):
        reports.save_examples(tmp_path / "c", found)
    assert sorted(p.name for p in (tmp_path / "c").iterdir()) == ["other.txt"]
    with pytest.raises(ValueError, match="not of 8 bits"):
        reports.save_examples(tmp_path / "d", attacked(None))
    with pytest.raises(ValueError, match=r"other\.txt is a file"):
        reports.save_examples(tmp_path / "c" / "other.txt" / "f.npz", found)
    # A folder whose files were changed.
    reports.save_examples(tmp_path / "d", found)
    image = tmp_path / "d" / "adversarial" / "000003.png"
    Image.new("RGB", (4, 4), (0, 0, 0)).save(image)
    with pytest.raises(ValueError, match="1 of 12 attacked images are further"):
        reports.load_examples(tmp_path / "d")
    Image.new("RGB", (5, 4)).save(image)
    with pytest.raises(ValueError, match="must have one shape"):
        reports.load_examples(tmp_path / "d")
    image.write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"000003\.png is no PNG file"):
        reports.load_examples(tmp_path / "d")
    listed = json.loads((tmp_path / "d" / "examples.json").read_text())
    listed["adversarial"] = [[1], 2]
    (tmp_path / "d" / "examples.json").write_text(json.dumps(listed))
    with pytest.raises(ValueError, match="adversarial must be a list"):
        reports.load_examples(tmp_path / "d")


def test_a_targeted_attack_is_refused():
    f, images, labels = make()

    def targeted(epsilon):
        return attacks.pga(p=2, epsilon=epsilon, targeted=True)

    with pytest.raises(ValueError, match="targeted"):
        reports.adversarial_examples(
            f,
            images,
            labels,
            attack=targeted,
            epsilon=0.1,
            key=jax.random.key(0),
        )
