"""Augmentation against slicing in NumPy, its transpose, and sharding."""

import collections
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opnorm import data

# Most tests share this shape, since eager calls compile each operation for a shape.
SHAPE = (16, 6, 5, 3)


def _reference(params: data.Augmentation, images: np.ndarray, pad: int) -> np.ndarray:
    _, height, width, _ = images.shape
    padded = np.pad(images, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    return _crops(params, padded, height, width)


def _crops(
    params: data.Augmentation, padded: np.ndarray, height: int, width: int
) -> np.ndarray:
    results = []
    for image, (row, column), flip in zip(
        padded, np.asarray(params.offsets), np.asarray(params.flips), strict=True
    ):
        crop = image[row : row + height, column : column + width]
        results.append(crop[:, ::-1] if flip else crop)
    return np.stack(results)


def test_matches_pad_crop_and_mirror() -> None:
    images = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
    params = data.sample_augmentation(jax.random.key(0), 16, pad=2)
    np.testing.assert_array_equal(
        data.apply_augmentation(params, images, pad=2), _reference(params, images, 2)
    )


@pytest.mark.parametrize("pad", [0, 2, 4])
def test_inverse_is_exactly_the_transpose(pad: int) -> None:
    rng = np.random.default_rng(1)
    # Sums of small integers are exact, so the identity must be exact too.
    x, y = (rng.integers(-9, 10, SHAPE).astype(np.float32) for _ in range(2))
    params = data.sample_augmentation(jax.random.key(2), 16, pad=pad)
    forward = np.asarray(data.apply_augmentation(params, x, pad=pad))
    backward = np.asarray(data.invert_augmentation(params, y, pad=pad))
    np.testing.assert_array_equal(
        (forward * y).sum((1, 2, 3)), (x * backward).sum((1, 2, 3))
    )
    transpose = jax.linear_transpose(
        lambda z: data.apply_augmentation(params, z, pad=pad), x
    )
    np.testing.assert_array_equal(transpose(y)[0], backward)


def test_inverse_restores_what_the_crop_saw_and_is_zero_elsewhere() -> None:
    images = np.random.default_rng(0).uniform(1, 2, SHAPE).astype(np.float32)
    params = data.sample_augmentation(jax.random.key(0), 16, pad=2)
    restored = np.asarray(
        data.invert_augmentation(
            params, data.apply_augmentation(params, images, pad=2), pad=2
        )
    )
    seen = restored != 0
    np.testing.assert_array_equal(restored[seen], images[seen])
    rows = np.array([6, 5]) - np.abs(np.asarray(params.offsets) - 2)
    np.testing.assert_array_equal(seen[..., 0].sum((1, 2)), rows.prod(1))


def test_draws_every_offset_and_flips_half() -> None:
    params = data.sample_augmentation(jax.random.key(0), 4000, pad=2)
    counts = np.bincount(np.asarray(params.offsets).ravel())
    assert len(counts) == 5
    np.testing.assert_allclose(counts / 8000, 0.2, atol=0.03)
    np.testing.assert_allclose(np.mean(params.flips), 0.5, atol=0.03)
    still = data.sample_augmentation(jax.random.key(0), 4000, flip=False)
    assert not np.any(still.flips)


def test_augment_draws_and_applies_and_keeps_bytes() -> None:
    images = np.random.default_rng(0).integers(0, 256, SHAPE, dtype=np.uint8)
    key = jax.random.key(3)
    augmented = data.augment(key, images, pad=2)
    params = data.sample_augmentation(key, 16, pad=2)
    assert augmented.dtype == jnp.uint8
    np.testing.assert_array_equal(augmented, _reference(params, images, 2))


@pytest.mark.parametrize("flip", [True, False])
def test_defaults_compose_the_linear_maps_bit_by_bit(flip: bool) -> None:
    """The default padding gives old runs the images that they began with."""
    images = np.random.default_rng(1).uniform(size=SHAPE).astype(np.float32)
    key = jax.random.key(5)
    params = data.sample_augmentation(key, 16, pad=2, flip=flip)
    np.testing.assert_array_equal(
        data.augment(key, images, pad=2, flip=flip, padding="zero", cutout=0),
        data.apply_augmentation(params, images, pad=2),
    )


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@pytest.mark.parametrize("padding", ["reflect", "grey"])
def test_other_paddings_match_numpy(padding: str, dtype: type) -> None:
    images = np.random.default_rng(0).integers(0, 256, SHAPE).astype(dtype)
    grey = 128
    if dtype == np.float32:
        images, grey = images / dtype(255), dtype(128 / 255)
    key = jax.random.key(3)
    params = data.sample_augmentation(key, 16, pad=2)
    widths = ((0, 0), (2, 2), (2, 2), (0, 0))
    padded = (
        np.pad(images, widths, mode="reflect")
        if padding == "reflect"
        else np.pad(images, widths, constant_values=grey)
    )
    expected = _crops(params, padded, 6, 5)
    augmented = data.augment(key, images, pad=2, padding=padding)
    assert augmented.dtype == dtype
    np.testing.assert_array_equal(augmented, expected)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@pytest.mark.parametrize("side", [3, 4])
def test_cutout_paints_a_square_with_the_mean_of_what_it_covers(
    side: int, dtype: type
) -> None:
    # All pixels differ, so the pixels that have changed are those that are covered.
    images = np.random.default_rng(0).permuted(
        np.broadcast_to(np.arange(8 * 7 * 3), (150, 168)), axis=1
    )
    images = images.reshape(150, 8, 7, 3).astype(dtype)
    key = jax.random.key(4)
    plain = np.asarray(data.augment(key, images, pad=0))
    cut = np.asarray(data.augment(key, images, pad=0, cutout=side))
    assert cut.dtype == dtype
    centres = collections.Counter()
    for before, after in zip(plain, cut, strict=True):
        matches = []
        for row, column in itertools.product(range(8), range(7)):
            top, left = row - side // 2, column - side // 2
            rows = slice(max(top, 0), top + side)
            columns = slice(max(left, 0), left + side)
            expected = before.copy()
            colour = before[rows, columns].astype(float).mean((0, 1))
            expected[rows, columns] = colour if dtype == np.float32 else colour.round()
            if np.allclose(expected, after, rtol=1e-5, atol=0):
                matches.append((row, column))
        assert len(matches) == 1
        centres[matches[0]] += 1
    # There are 56 places, and each row and column is a centre about equally often.
    for axis, size in ((0, 8), (1, 7)):
        counts = np.bincount([c[axis] for c in centres.elements()], minlength=size)
        np.testing.assert_allclose(counts / 150, 1 / size, atol=0.09)


def test_cutout_leaves_crops_and_flips_as_they_are() -> None:
    images = np.random.default_rng(1).uniform(size=SHAPE).astype(np.float32)
    key = jax.random.key(0)
    plain = np.asarray(data.augment(key, images, pad=2, padding="reflect"))
    cut = np.asarray(data.augment(key, images, pad=2, padding="reflect", cutout=4))
    unchanged = (plain == cut).all(-1)
    assert unchanged.sum((1, 2)).min() >= 30 - 16
    assert (unchanged.sum((1, 2)) == 30 - 16).any()


def test_a_sharded_batch_stays_sharded() -> None:
    devices = jax.devices()
    mesh = jax.make_mesh(
        (len(devices),), ("data",), axis_types=(jax.sharding.AxisType.Auto,)
    )
    sharding = jax.NamedSharding(mesh, jax.P("data"))
    images = np.random.default_rng(1).uniform(size=SHAPE).astype(np.float32)
    key = jax.random.key(0)

    def augment(key: jax.Array, images: jax.Array) -> list[jax.Array]:
        return [
            data.augment(key, images, pad=2, **options)
            for options in ({}, {"padding": "reflect", "cutout": 4})
        ]

    step = jax.jit(augment, in_shardings=(None, sharding), out_shardings=sharding)
    compiled = step.lower(key, images).compile()
    program = compiled.as_text() or ""
    assert "dynamic-slice" in program or "gather" in program
    for collective in ("all-gather", "all-reduce", "all-to-all"):
        assert collective not in program
    for found, expected in zip(
        compiled(key, jax.device_put(images, sharding)),
        augment(key, images),
        strict=True,
    ):
        np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_rejects_negative_padding_and_shapes_that_do_not_fit() -> None:
    params = data.sample_augmentation(jax.random.key(0), 16, pad=2)
    with pytest.raises(ValueError, match="pad is -1"):
        data.sample_augmentation(jax.random.key(0), 2, pad=-1)
    with pytest.raises(ValueError, match="images has shape"):
        data.apply_augmentation(params, np.zeros((3, 4, 4, 1)))
    with pytest.raises(ValueError, match="images has shape"):
        data.augment(jax.random.key(0), np.zeros((16, 4, 4)))
    for option, message in (
        ({"padding": "edge"}, "padding is 'edge'.*zero, reflect, grey"),
        ({"cutout": -1}, "cutout is -1"),
        ({"cutout": 5}, "cutout is 5.* 4"),
    ):
        with pytest.raises(ValueError, match=message):
            data.augment(jax.random.key(0), np.zeros((16, 4, 6, 1)), **option)
