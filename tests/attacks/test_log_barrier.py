"""LogBarrier on affine networks, where its points are known exactly."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opnorm.attacks.log_barrier import _barrier, _pull, log_barrier

W = np.random.default_rng(0).normal(size=10)
P = [2.0, math.inf]
SHORT = {"num_outer": 4, "num_inner": 60}


def points(batch=4, seed=1):
    drawn = np.random.default_rng(seed).uniform(0.4, 0.6, (batch, 10))
    return jnp.asarray(drawn, jnp.float32)


def affine(p, least, x):
    """Two classes with the nearest boundary at ``least`` of every example."""
    size = np.linalg.norm(W, 1 if p == math.inf else 2)
    least = jnp.broadcast_to(jnp.asarray(least, jnp.float32), len(x))

    def f(z):
        margin = least * size + jnp.sum((z - x) * jnp.asarray(W, x.dtype), axis=1)
        return jnp.stack([margin / 2, -margin / 2], axis=1)

    return f


def tilted(z):
    """Two classes, and a boundary at a different distance from every example."""
    margin = 0.5 + jnp.sum((z - 0.5) * jnp.float32(W), axis=1)
    return jnp.stack([margin / 2, -margin / 2], axis=1)


def fixed_point(least, weight):
    """The t with ``t sinh(size t - margin) = weight size``, by bisection."""
    size = np.linalg.norm(W)
    low, high = least, least + 5.0
    for _ in range(80):
        t = (low + high) / 2
        short = t * math.sinh(size * (t - least)) < weight * size
        low, high = (t, high) if short else (low, t)
    return low


@functools.partial(jax.jit, static_argnums=(0, 1))
def _run(f, options, x, labels, keys, start):
    return log_barrier(**dict(options)).run(f, x, labels, keys, start=start)


def run(f, x, keys=None, start=None, labels=None, **options):
    labels = jnp.zeros(len(x), int) if labels is None else labels
    keys = jax.random.split(jax.random.key(0), len(x)) if keys is None else keys
    return _run(f, tuple(options.items()), x, labels, keys, start)


def test_without_bisection_it_ends_at_the_fixed_point_of_its_barrier() -> None:
    x, least = points(), np.array([0.05, 0.1, 0.2, 0.5])
    result = run(affine(2.0, least, x), x, final_bisections=0)
    expected = [fixed_point(t, 0.1 * 0.75**14) for t in least]
    np.testing.assert_allclose(result.distance, expected, rtol=1e-3)
    np.testing.assert_allclose(expected / least, [1.48, 1.154, 1.042, 1.007], rtol=1e-3)
    direction = W / np.linalg.norm(W)
    turned = np.asarray(result.x_adv - x) @ direction
    np.testing.assert_allclose(turned, -np.asarray(result.distance), rtol=1e-3)


def test_weight_and_decay_set_the_fixed_point() -> None:
    x = points()
    options = {"initial_weight": 0.02, "decay": 0.5, "num_outer": 3}
    result = run(affine(2.0, 0.3, x), x, final_bisections=0, **options)
    np.testing.assert_allclose(result.distance, fixed_point(0.3, 0.005), rtol=1e-3)


def test_the_bisection_removes_the_bias() -> None:
    x, least = points(), np.array([0.05, 0.1, 0.2, 0.5])
    result = run(affine(2.0, least, x), x)
    ratio = np.asarray(result.distance) / least
    assert np.all(result.success)
    assert np.all((ratio >= 1 - 1e-6) & (ratio <= 1.005)), ratio
    # There are 7500 inner steps; points that stand still end their rounds.
    assert np.all(result.steps < 5000)


def test_far_boundaries_are_reached_by_going_back() -> None:
    # The barrier's curvature is too large there for the step.
    x = points()
    result = run(affine(2.0, 3.0, x), x, bounds=None)
    ratio = np.asarray(result.distance) / 3.0
    assert np.all((ratio >= 1 - 1e-6) & (ratio <= 1.0001)), ratio


def test_the_cubes_come_near_from_a_good_start() -> None:
    x, least = points(), np.array([0.03, 0.03, 0.1, 0.1])
    start = x - jnp.float32(2 * least[:, None] * np.sign(W))
    result = run(affine(math.inf, least, x), x, p=math.inf, start=start)
    ratio = np.asarray(result.distance) / least
    assert np.all(result.success)
    assert np.all((ratio >= 1 - 1e-6) & (ratio <= 1.02)), ratio


def test_the_kept_point_is_no_farther_than_the_start() -> None:
    x = points()
    f = affine(2.0, 0.05, x)
    # The barrier pushes away from here, to 1.48 times the least distance.
    start = x - jnp.float32(0.055 * W / np.linalg.norm(W))
    result = run(f, x, start=start, final_bisections=0, **SHORT)
    np.testing.assert_array_equal(result.x_adv, start)


def test_a_start_counts_only_where_it_is_misclassified() -> None:
    x = points()
    wrong = x - jnp.float32(0.2 * W / np.linalg.norm(W))
    start = wrong.at[0].set(x[0])
    # Without a box there is no corner to walk to.
    options = {"num_tries": 1, "bounds": None} | SHORT
    result = run(affine(2.0, 0.1, x), x, start=start, **options)
    np.testing.assert_array_equal(result.success, [False, True, True, True])
    np.testing.assert_array_equal(result.x_adv[0], x[0])


def test_noise_grows_until_it_is_misclassified() -> None:
    x = jnp.full((2000, 10), 0.5, jnp.float32)

    # Whatever leaves a ball is misclassified: the first noise to do so is kept.
    def f(z):
        far = jnp.linalg.norm(z - 0.5, axis=1) - 0.05
        return jnp.stack([-far, far], axis=1)

    options = {"num_outer": 1, "num_inner": 1, "final_bisections": 0, "bounds": None}
    result = run(f, x, **options)
    tries = np.asarray(result.steps)
    # A try at j is 0.01 1.01^j times the length of ten normal numbers.
    length = np.random.default_rng(0).normal(size=(20000, 10))
    length = np.linalg.norm(length, axis=1)
    alive, expected = 1.0, 0.0
    for j in range(400):
        expected += alive
        alive *= np.mean(0.01 * 1.01**j * length <= 0.05)
    np.testing.assert_allclose(tries.mean(), expected, rtol=0.03)


def test_without_a_misclassified_point_the_input_is_returned() -> None:
    x, tries = points(), 7

    def never(z):
        return jnp.stack([jnp.ones(len(z)), jnp.sum(z, axis=1) * 0], axis=1)

    result = run(never, x, num_tries=tries, **SHORT)
    np.testing.assert_array_equal(result.x_adv, x)
    # And six points of each walk: to the other class, and from three corners.
    np.testing.assert_array_equal(result.steps, tries + 4 * 6)
    assert not np.any(result.success)


def test_examples_wrong_already_stay_where_they_are() -> None:
    x, labels = points(5), jnp.array([0, 1, 0, 1, 0])
    result = run(tilted, x, labels=labels, **SHORT)
    np.testing.assert_array_equal(result.x_adv[1::2], x[1::2])
    np.testing.assert_array_equal(result.distance[1::2], 0)
    np.testing.assert_array_equal(result.steps[1::2], 0)
    assert np.all(result.success)
    assert np.all(result.distance[::2] > 0)


def test_the_barrier_is_that_of_the_probabilities() -> None:
    with jax.enable_x64(True):
        logits = jnp.asarray(np.random.default_rng(4).normal(size=(6, 4)))
        labels = jnp.argmin(logits, axis=1)
        chance = jax.nn.softmax(logits)
        own = chance[jnp.arange(6), labels]
        barrier = -jnp.log(jnp.max(chance, axis=1) - own)
        np.testing.assert_allclose(_barrier(logits, labels), barrier, rtol=1e-12)


@pytest.mark.parametrize("gap", [1e-30, 1e-6, 0.1, 3.0, 60.0])
def test_the_barrier_has_a_gradient_at_any_gap(gap) -> None:
    @jax.jit
    def barrier(gap):
        logits = jnp.stack([-gap / 2, gap / 2])[None]
        return _barrier(logits, jnp.zeros(1, int))[0]

    slope = jax.grad(barrier)(jnp.float32(gap))
    # Beyond float32's last digit before one, the probability's is all there is.
    np.testing.assert_allclose(slope, -1 / math.sinh(gap), rtol=1e-5, atol=1e-7)


def test_the_barrier_is_flat_on_the_right_side() -> None:
    logits = jnp.array([[1.0, 0.0, -2.0], [0.5, 0.5, 0.0], [jnp.nan, 1.0, 0.0]])
    labels = jnp.array([0, 0, 1])
    slope = jax.grad(lambda z: _barrier(z, labels)[:2].sum())(logits)
    np.testing.assert_array_equal(slope[:2], 0)
    one = jnp.zeros((2, 1))
    np.testing.assert_array_equal(_barrier(one, jnp.zeros(2, int)), 0)


def test_the_pull_is_the_gradient_of_the_smooth_largest_entry() -> None:
    with jax.enable_x64(True):
        delta = jnp.asarray(np.random.default_rng(5).normal(size=(3, 2, 5))) * 0.02

        def height(delta):
            size = jnp.abs(delta.reshape(3, 10))
            return jnp.sum(jax.nn.softmax(500 * size, axis=1) * size)

        expected = jax.grad(height)(delta)
        pull = _pull(delta, math.inf, 500.0)
        np.testing.assert_allclose(pull, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float64])
def test_shape_and_dtype_are_those_of_the_input(dtype) -> None:
    with jax.enable_x64(dtype == jnp.float64):
        x = points().astype(dtype).reshape(4, 5, 2, 1)

        def f(z):
            margin = jnp.sum((z - 0.5).reshape(4, 10) * jnp.asarray(W, dtype), axis=1)
            return jnp.stack([margin + 0.3, -margin], axis=1)

        result = run(f, x, **SHORT)
        assert result.x_adv.shape == x.shape
        assert result.x_adv.dtype == dtype
        assert np.all(result.success)


def test_a_step_costs_one_forward_pass_and_one_input_gradient() -> None:
    x, weights = points(), jnp.ones((10, 2))
    jaxpr = jax.make_jaxpr(
        lambda key: log_barrier()(lambda z: z @ weights, x, jnp.zeros(4, int), key)
    )(jax.random.key(0))
    # One at x, two in the body of the loop.
    assert str(jaxpr).count("dot_general[") == 3


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"p": 1.0}, "p is 1"),
        ({"num_outer": 0}, "num_outer is 0"),
        ({"num_inner": 0}, "num_inner is 0"),
        ({"num_tries": 0}, "num_tries is 0"),
        ({"final_bisections": -1}, "final_bisections is -1"),
        ({"step_size": 0.0}, "step_size is 0.0"),
        ({"step_size": math.inf}, "step_size is inf"),
        ({"initial_weight": -0.1}, "initial_weight is -0.1"),
        ({"temperature": math.nan}, "temperature is nan"),
        ({"decay": 1.0}, "decay is 1.0"),
        ({"backtrack": 0.0}, "backtrack is 0.0"),
        ({"bounds": (1.0, 0.0)}, "bounds"),
    ],
)
def test_bad_options_are_refused_by_name(options, name) -> None:
    with pytest.raises(ValueError, match=name):
        log_barrier(**options)


def test_a_key_is_needed() -> None:
    with pytest.raises(ValueError, match="key is None"):
        log_barrier()(tilted, points(), jnp.zeros(4, int))
