"""tests: augmentation against slicing in NumPy, its transpose, and sharding."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opnorm import data


def _reference(params: data.Augmentation, images: np.ndarray, pad: int) -> np.ndarray:
    _, height, width, _ = images.shape
    padded = np.pad(images, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    results = []
    for image, (row, column), flip in zip(
        padded, np.asarray(params.offsets), np.asarray(params.flips), strict=True
    ):
        crop = image[row : row + height, column : column + width]
        results.append(crop[:, ::-1] if flip else crop)
    return np.stack(results)


class AugmentationTest(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)
    def test_matches_pad_crop_and_mirror(self) -> None:
        images = np.random.default_rng(0).normal(size=(16, 6, 5, 3)).astype(np.float32)
        params = data.sample_augmentation(jax.random.key(0), 16, pad=2)
        apply = self.variant(lambda p, x: data.apply_augmentation(p, x, pad=2))
        np.testing.assert_array_equal(
            apply(params, images), _reference(params, images, 2)
        )


@pytest.mark.parametrize("pad", [0, 1, 4])
def test_inverse_is_exactly_the_transpose(pad: int) -> None:
    shape = (12, 5, 6, 2)
    rng = np.random.default_rng(1)
    # Small integers: the sums are exact, so the identity must be.
    x, y = (jnp.asarray(rng.integers(-9, 10, shape), jnp.float32) for _ in range(2))
    params = data.sample_augmentation(jax.random.key(2), 12, pad=pad)
    forward = data.apply_augmentation(params, x, pad=pad)
    backward = data.invert_augmentation(params, y, pad=pad)
    np.testing.assert_array_equal(
        (forward * y).sum((1, 2, 3)), (x * backward).sum((1, 2, 3))
    )
    transpose = jax.linear_transpose(
        lambda z: data.apply_augmentation(params, z, pad=pad), x
    )
    np.testing.assert_array_equal(transpose(y)[0], backward)


def test_inverse_restores_what_the_crop_saw_and_is_zero_elsewhere() -> None:
    images = np.random.default_rng(0).uniform(1, 2, (20, 8, 8, 3)).astype(np.float32)
    params = data.sample_augmentation(jax.random.key(0), 20, pad=3)
    restored = np.asarray(
        data.invert_augmentation(
            params, data.apply_augmentation(params, jnp.asarray(images), pad=3), pad=3
        )
    )
    seen = restored != 0
    np.testing.assert_array_equal(restored[seen], images[seen])
    rows = 8 - np.abs(np.asarray(params.offsets) - 3)
    np.testing.assert_array_equal(seen[..., 0].sum((1, 2)), rows.prod(1))


def test_draws_every_offset_and_flips_half() -> None:
    params = data.sample_augmentation(jax.random.key(0), 4000, pad=2)
    counts = np.bincount(np.asarray(params.offsets).ravel())
    assert len(counts) == 5
    np.testing.assert_allclose(counts / 8000, 0.2, atol=0.03)
    np.testing.assert_allclose(params.flips.mean(), 0.5, atol=0.03)
    assert not data.sample_augmentation(jax.random.key(0), 100, flip=False).flips.any()


def test_augment_draws_and_applies_and_keeps_bytes() -> None:
    images = np.random.default_rng(0).integers(0, 256, (8, 6, 6, 1), dtype=np.uint8)
    key = jax.random.key(3)
    augmented = data.augment(key, jnp.asarray(images), pad=2)
    params = data.sample_augmentation(key, 8, pad=2)
    assert augmented.dtype == jnp.uint8
    np.testing.assert_array_equal(augmented, _reference(params, images, 2))


def test_a_sharded_batch_stays_sharded() -> None:
    devices = jax.devices()
    mesh = jax.make_mesh(
        (len(devices),), ("data",), axis_types=(jax.sharding.AxisType.Auto,)
    )
    sharding = jax.NamedSharding(mesh, jax.P("data"))
    images = jax.random.uniform(jax.random.key(1), (16, 6, 6, 3))
    key = jax.random.key(0)
    step = jax.jit(data.augment, in_shardings=(None, sharding), out_shardings=sharding)
    program = step.lower(key, images).compile().as_text() or ""
    assert "dynamic-slice" in program or "gather" in program
    for collective in ("all-gather", "all-reduce", "all-to-all"):
        assert collective not in program
    np.testing.assert_array_equal(step(key, images), data.augment(key, images))


def test_rejects_negative_padding_and_shapes_that_do_not_fit() -> None:
    params = data.sample_augmentation(jax.random.key(0), 2)
    with pytest.raises(ValueError, match="pad is -1"):
        data.sample_augmentation(jax.random.key(0), 2, pad=-1)
    with pytest.raises(ValueError, match="images has shape"):
        data.apply_augmentation(params, jnp.zeros((3, 4, 4, 1)))
    with pytest.raises(ValueError, match="images has shape"):
        data.augment(jax.random.key(0), jnp.zeros((3, 4, 4)))
