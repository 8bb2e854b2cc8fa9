"""APGD compared with closed forms on affine networks and with plain NumPy."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opnorm import attacks, linalg
from opnorm.attacks.apgd import _checkpoints
from opnorm.attacks.stage import make_problem

P = (1.0, 2.0, math.inf)
EPSILON = {1.0: 1.6, 2.0: 0.3, math.inf: 0.05}
SHAPE = (4, 4, 3)
N = 48
W = np.random.default_rng(0).normal(size=16 * N)
FIRST = np.random.default_rng(1).normal(size=(N, 8)) / 3
SECOND = np.random.default_rng(2).normal(size=(8, 4))


def flatten(x):
    return x.reshape(len(x), -1)


def affine(offset, x):
    """Two classes of margin <W, x> + offset."""
    flat = flatten(x)
    margin = flat @ jnp.asarray(W[: flat.shape[1]], x.dtype) + offset
    return jnp.stack([margin / 2, -margin / 2], axis=1)


def network(x):
    """Four classes, smooth and curved."""
    hidden = jnp.tanh(flatten(x) @ jnp.asarray(FIRST, x.dtype))
    return hidden @ jnp.asarray(SECOND, x.dtype)


@jax.jit
def decisions(x):
    return jnp.argmax(network(x), axis=1)


@jax.jit
def cross_entropies(x, labels):
    return attacks.cross_entropy(network(x), labels)


def images(count, edges=0.0, shape=SHAPE):
    """Images in [0.4, 0.6], with a part of their pixels at 0 or 1."""
    rng = np.random.default_rng(3)
    x = rng.uniform(0.4, 0.6, (count, *shape))
    x = np.where(rng.uniform(size=x.shape) < edges, rng.integers(0, 2, x.shape), x)
    return x.astype(np.float32)


def images_for(p, edges=0.0):
    # Sparse steps are coarse where the answer has only a few entries.
    return images(6, edges, (16, 16, 3) if p == 1 else SHAPE)


def keys(count):
    return jax.random.split(jax.random.key(0), count)


def largest_drop(x, p, epsilon):
    """By how much the margin of one image can fall inside ball and box."""
    w = W[: x.size]
    room, size = np.where(w > 0, x.ravel(), 1 - x.ravel()), np.abs(w)
    if p == math.inf:
        return size @ np.minimum(epsilon, room)
    if p == 1:
        left, total = epsilon, 0.0
        for i in np.argsort(-size):
            step = min(room[i], left)
            left, total = left - step, total + size[i] * step
        return total
    low, high = 0.0, 1e6
    for _ in range(200):
        middle = (low + high) / 2
        short = np.linalg.norm(np.minimum(middle * size, room)) < epsilon
        low, high = (middle, high) if short else (low, middle)
    return size @ np.minimum(low * size, room)


@functools.partial(jax.jit, static_argnums=(0,))
def _attack(options, x, labels, offset, epsilon, key):
    attack = attacks.apgd(epsilon=epsilon, **dict(options))
    return attack.run(functools.partial(affine, offset), x, labels, key)


def run_affine(x, margin, epsilon, label=0, **options):
    """The attack on images of a margin, and which part of the best drop it finds."""
    w = W[: x[0].size]
    offset = margin - flatten(x).astype(np.float64) @ w
    labels = np.full(len(x), label, np.int32)
    given = (tuple(options.items()), x, labels, offset.astype(np.float32))
    found = _attack(*given, jnp.full(len(x), epsilon, jnp.float32), keys(len(x)))
    drop = -flatten(np.asarray(found.x_adv, np.float64) - x) @ w
    return found, drop / [largest_drop(row, options["p"], epsilon) for row in x]


@pytest.mark.parametrize(("p", "floor"), [(1.0, 0.999), (2.0, 0.9999), (math.inf, 1)])
@pytest.mark.parametrize("margin", [7.0, 20.0])
def test_the_worst_case_of_the_ball_is_found(p, floor, margin) -> None:
    # At a margin of 20 the usual cross-entropy is 0 in float32, and its gradient too.
    found, ratio = run_affine(images_for(p), margin, EPSILON[p], p=p)
    assert np.all(ratio >= floor - 1e-5), ratio
    assert np.all(ratio <= 1 + 1e-5), ratio
    assert not found.success.any()
    # A run evaluates its start and every step; with p = 1 there are three radii.
    np.testing.assert_array_equal(found.steps, 103 if p == 1 else 101)


@pytest.mark.parametrize(("p", "floor"), [(1.0, 0.97), (2.0, 0.99), (math.inf, 1)])
def test_the_worst_case_of_ball_and_box_is_nearly_found(p, floor) -> None:
    _, ratio = run_affine(images_for(p, 0.6), 30.0, 4 * EPSILON[p], p=p)
    assert np.all(ratio >= floor - 1e-5), ratio
    assert np.all(ratio <= 1 + 1e-5), ratio


@pytest.mark.parametrize("p", P)
def test_a_vanishing_budget_moves_nothing(p) -> None:
    x = images_for(p, 0.6)
    found, _ = run_affine(x, 7.0, 1e-30, p=p)
    np.testing.assert_allclose(found.x_adv, x, atol=1e-7)


@pytest.mark.parametrize("p", P)
def test_an_example_rests_at_its_first_success(p) -> None:
    x = images_for(p)
    goal = 0.7 * np.array([largest_drop(row, p, EPSILON[p]) for row in x])
    found, ratio = run_affine(x, goal, EPSILON[p], p=p)
    assert found.success.all()
    assert np.all(ratio >= 0.7 - 1e-5), ratio
    # With p = 1 only the last radius counts, which opens with step 62.
    assert np.all(found.steps <= (70 if p == 1 else 5))


def triple(logits, labels):
    return 7 + 3 * attacks.margin(logits, labels)


@pytest.mark.parametrize(
    ("options", "label"),
    [
        # One target, whatever num_targets says, since there are two classes.
        ({"loss": "dlr_targeted"}, 0),
        ({"loss": triple, "targeted": True, "bounds": None}, 1),
    ],
)
def test_the_first_step_reaches_every_face_of_the_cube(options, label) -> None:
    x, options = images(6), {"p": math.inf, "num_steps": 1} | options
    found, _ = run_affine(x, 7.0, 0.05, label, **options)
    corner = 0.05 * np.sign(W[:N]).reshape(SHAPE)
    np.testing.assert_allclose(found.x_adv, x - corner, atol=1e-7)
    np.testing.assert_array_equal(found.steps, 2)
    assert not found.success.any()
    found, _ = run_affine(x, 1.0, 0.05, label, **options)
    assert found.success.all()


def test_checkpoints_come_ever_more_often() -> None:
    places = [at for at, _ in _checkpoints(100)]
    assert places == [22, 41, 57, 70, 80, 87, 93, 99]
    windows = [window for _, window in _checkpoints(100)]
    assert windows == [22, 19, 16, 13, 10, 7, 6, 6]
    assert [at for at, _ in _checkpoints(10)] == list(range(2, 11))
    assert [at for at, _ in _checkpoints(1)] == [1]


def test_a_face_of_the_box_holds_up_no_start() -> None:
    # The steepest entry cannot fall; along the other one 0.4 suffices, half of epsilon.
    # The published algorithm spends its sparse steps on the first: 26 starts succeed.
    def f(z):
        return jnp.stack([10 * z[:, 0] + z[:, 1] - 0.5, jnp.zeros(len(z))], axis=1)

    x, labels = jnp.tile(jnp.float32([0.0, 0.9]), (40, 1)), np.zeros(40, np.int32)
    attack = attacks.apgd(p=1.0, epsilon=0.8)
    found = jax.jit(lambda x, keys: attack.run(f, x, labels, keys))(x, keys(40))
    assert found.success.all()
    assert np.all((found.distance > 0.4) & (found.distance <= 0.8 + 1e-6))


# The published algorithm, an example at a time, in numpy, but for the gradient entries
# that the box blocks.


@jax.jit
def _loss_and_gradient(x, label):
    def loss(z):
        return attacks.cross_entropy(network(z[None]), label[None])[0]

    return jax.value_and_grad(loss)(x)


class Published:
    """APGD on the cross-entropy of ``network``, from a given start."""

    def __init__(self, x, label, p, epsilon):
        self.x, self.label, self.p = x.ravel(), jnp.asarray(label), p
        self.epsilon = epsilon

    def evaluate(self, delta):
        x = np.clip(self.x + delta, 0, 1)
        value, gradient = _loss_and_gradient(jnp.asarray(x.reshape(SHAPE)), self.label)
        gradient = np.asarray(gradient).ravel()
        # Up to rounding.
        out = ((gradient < 0) & (x < 1e-15)) | ((gradient > 0) & (x > 1 - 1e-15))
        return float(value), np.where(out, 0, gradient)

    def project(self, delta, radius):
        x = self.x
        if self.p == math.inf:
            delta = np.clip(delta, -radius, radius)
        elif self.p == 2:
            delta = delta * min(1, radius / max(np.linalg.norm(delta), 1e-30))
        else:
            sign, room = np.sign(delta), np.where(delta > 0, 1 - x, x)
            low, high = 0.0, np.abs(delta).max()

            def shrunk(by):
                return np.minimum(np.maximum(np.abs(delta) - by, 0), room)

            if shrunk(0).sum() <= radius:
                high = 0.0
            for _ in range(200):
                middle = (low + high) / 2
                inside = shrunk(middle).sum() <= radius
                low, high = (low, middle) if inside else (middle, high)
            delta = sign * shrunk(high)
        # Rounded as the attack rounds, so that the same entries count as changed.
        return np.clip(x + delta, 0, 1) - x

    def run(self, delta, steps):
        """With momentum, for p = 2 and inf."""
        window = max(int(0.22 * steps), 1)
        shorter, least = max(int(0.03 * steps), 1), max(int(0.06 * steps), 1)
        step, counter, reduced = 2 * self.epsilon, 0, True
        value, gradient = self.evaluate(delta)
        losses, best = [value], (value, delta, gradient)
        checked, previous = value, delta
        for i in range(steps):
            if self.p == 2:
                direction = gradient / np.linalg.norm(gradient)
            else:
                direction = np.sign(gradient)
            share = 1.0 if i == 0 else 0.75
            ahead = self.project(delta + step * direction, self.epsilon)
            moved = delta + share * (ahead - delta) + (1 - share) * (delta - previous)
            previous, delta = delta, self.project(moved, self.epsilon)
            value, gradient = self.evaluate(delta)
            losses.append(value)
            if value > best[0]:
                best = value, delta, gradient
            counter += 1
            if counter == window:
                seen = losses[-window - 1 :]
                rises = sum(b > a for a, b in itertools.pairwise(seen))
                reduced = rises <= 0.75 * window or (not reduced and best[0] <= checked)
                checked = best[0]
                if reduced:
                    step, (_, delta, gradient) = step / 2, best
                counter, window = 0, max(window - shorter, least)
        return best[0], best[1], step

    def run_sparse(self, delta, phases):
        """For p = 1, over (radius in units of epsilon, steps)."""
        best = -math.inf, delta, None
        for number, (factor, steps) in enumerate(phases):
            radius = factor * self.epsilon
            window, step, counter = max(int(0.04 * steps), 1), radius, 0
            if number:
                delta = self.project(best[1], radius)
            support = np.count_nonzero(delta)
            density = support / N / 1.5
            value, gradient = self.evaluate(delta)
            best = value, delta, gradient
            for _ in range(steps):
                modulus = np.abs(gradient)
                rank = min(max(int((1 - density) * N), 0), N - 1)
                kept = np.sign(gradient) * (modulus >= np.sort(modulus)[rank])
                delta = delta + step * kept / np.abs(kept).sum()
                delta = self.project(delta, radius)
                value, gradient = self.evaluate(delta)
                if value > best[0]:
                    best = value, delta, gradient
                counter += 1
                if counter == window:
                    now = np.count_nonzero(best[1])
                    fewer = now / support < 0.95
                    density, support, counter = now / N / 1.5, now, 0
                    step = radius if fewer else max(step / 1.5, radius / 10)
                    if fewer:
                        _, delta, gradient = best
        return best[0], best[1], step


# Enough steps for p = 1 to have checkpoints at every second one only.
# In L2 the search has converged to rounding after 30 steps: whether the loss has risen,
# which decides on the step size, is then a matter of the last bit.
@pytest.mark.parametrize(("p", "num_steps"), [(math.inf, 30), (2.0, 24), (1.0, 170)])
def test_the_points_are_those_of_the_published_algorithm(p, num_steps) -> None:
    epsilon = {1.0: 2.0, 2.0: 0.8, math.inf: 0.2}[p]
    with jax.enable_x64(True):
        x = jnp.asarray(images(4, edges=0.3), jnp.float64)
        labels = decisions(x)
        options = {"p": p, "epsilon": epsilon, "num_steps": num_steps}
        stage = attacks.apgd(keep="loss", **options).stages[0]
        problem = make_problem(x, labels, keys(4))

        init = jax.jit(lambda problem: stage.init(network, problem))

        @jax.jit
        def advance(problem, state, first, count):
            rows = jnp.full(4, True)
            return stage.advance(network, problem, state, first, count, rows)[0]

        state = advance(problem, init(problem), 0, 1)
        starts = flatten(np.asarray(state.search.delta))
        state = advance(problem, state, 1, stage.num_steps - 1)
        found = jax.jit(stage.finish)(problem, state)
        at_best = cross_entropies(found, labels)
        delta_found = flatten(np.asarray(found) - np.asarray(x))
        for i in range(4):
            plain = Published(np.asarray(x[i]), labels[i], p, epsilon)
            third = math.ceil(0.3 * num_steps)
            phases = [(3, third), (2, third), (1, num_steps - 2 * third)]
            if p == 1:
                value, delta, step = plain.run_sparse(starts[i], phases)
            else:
                value, delta, step = plain.run(starts[i], num_steps)
            np.testing.assert_allclose(state.best.value[i], value, rtol=1e-6)
            np.testing.assert_allclose(delta_found[i], delta, atol=1e-6)
            np.testing.assert_allclose(state.search.step_size[i], step, rtol=1e-9)
    # The best loss is that of the point that is returned.
    np.testing.assert_allclose(at_best, state.best.value, rtol=1e-12)


@functools.partial(jax.jit, static_argnums=(0,))
def _on_network(options, x, labels, key, start=None):
    return attacks.apgd(**dict(options)).run(network, x, labels, key, start=start)


def on_network(x, labels, key, start=None, **options):
    return _on_network(tuple(options.items()), x, labels, key, start)


OPTIONS = {"p": 2.0, "epsilon": 0.1, "num_steps": 4}


def test_restarts_are_runs_of_their_own_and_the_best_is_kept() -> None:
    x = images(4)
    labels = decisions(x)
    both = on_network(x, labels, keys(4), num_restarts=3, **OPTIONS)
    np.testing.assert_array_equal(both.steps, 3 * 5)

    @jax.jit
    def noise(run):
        # The start of each, drawn as the attack draws it.
        drawn = attacks.fold_in(keys(4), run)
        found = jax.vmap(lambda key: jax.random.normal(key, SHAPE))(drawn)
        return 0.1 * found / linalg.norm(found)[:, None, None, None]

    reached = []
    for run in range(3):
        alone = on_network(x, labels, keys(4), x + np.asarray(noise(run)), **OPTIONS)
        np.testing.assert_array_equal(alone.steps, 5)
        reached.append(cross_entropies(alone.x_adv, labels))
    kept = cross_entropies(both.x_adv, labels)
    np.testing.assert_allclose(kept, np.max(reached, axis=0), rtol=1e-6)
    # Starts differ, so this test sees which was kept.
    assert len(set(np.argmax(reached, axis=0).tolist())) > 1


def test_an_adversarial_start_is_returned() -> None:
    x = images(4)
    labels = np.asarray(decisions(x))
    uphill = FIRST @ (SECOND[:, (labels + 1) % 4] - SECOND[:, labels])
    start = np.float32(uphill.T > 0).reshape(x.shape)
    assert np.all(labels != decisions(start))
    # x and the start come near each other from both sides of the boundary.
    for _ in range(12):
        middle = (x + start) / 2
        right = (labels == decisions(middle))[:, None, None, None]
        x, start = np.where(right, middle, x), np.where(right, start, middle)
    found = on_network(x, labels, keys(4), start, **OPTIONS)
    np.testing.assert_array_equal(found.steps, 1)
    np.testing.assert_allclose(found.x_adv, start, atol=1e-7)
    assert found.success.all()
    # The input itself comes before the start.
    found = on_network(start, labels, keys(4), x, **OPTIONS)
    np.testing.assert_array_equal(found.steps, 0)
    np.testing.assert_array_equal(found.x_adv, start)
    assert found.success.all()


def test_an_example_does_not_depend_on_its_batch() -> None:
    x = images(4)
    labels = decisions(x)
    options = {"num_restarts": 3} | OPTIONS
    whole = on_network(x, labels, keys(4), **options)
    for i in range(4):
        # In company of its copies, so that nothing is compiled anew.
        same = np.full(4, i)
        alone = on_network(x[same], labels[same], keys(4)[same], **options)
        np.testing.assert_allclose(alone.x_adv, whole.x_adv[same], atol=1e-6)


def test_every_class_is_tried_as_a_target() -> None:
    # The margins to three classes are linear, and only the one that comes last at the
    # clean image can be overtaken inside the ball.
    x, norms = images(3), np.array([1.0, 1.0, 10.0])
    weights = np.random.default_rng(7).normal(size=(N, 3))
    weights *= norms / np.linalg.norm(weights, axis=0)
    margins = 0.3 * norms * [1.2, 1.4, 0.9]

    def f(z):
        others = flatten(z - x) @ jnp.asarray(weights, z.dtype) - margins
        return jnp.concatenate([jnp.zeros((len(z), 1)), others], axis=1)

    options = {"num_steps": 10, "num_restarts": 2, "loss": "dlr_targeted"}
    attack = attacks.apgd(p=2.0, epsilon=0.3, **options)

    @jax.jit
    def run(x, keys):
        found = attack.run(f, x, jnp.zeros(3, int), keys)
        return found, jnp.argmax(f(found.x_adv), axis=1)

    found, decided = run(x, keys(3))
    assert found.success.all()
    np.testing.assert_array_equal(decided, 3)
    # The first two targets took all their steps in vain.
    assert np.all((found.steps > 2 * 22) & (found.steps <= 3 * 22))


def test_a_success_is_judged_at_the_point_that_is_returned() -> None:
    # Adding a perturbation may round to the outside of the box, where nothing counts.
    x = np.full((1, 64, 1), 0.1, np.float32)
    x[0] += np.linspace(0, 0.7, 64, dtype=np.float32)[:, None]

    def f(z):
        outside = (z < np.float32(0.1)) | (z > np.float32(0.9))
        flat = jnp.sum(jnp.where(outside, 1e6, 0 * z), axis=(1, 2))
        return jnp.stack([1.0 + 0 * flat, flat], axis=1)

    attack = attacks.apgd(p=math.inf, epsilon=0.9, num_steps=3, bounds=(0.1, 0.9))
    found = jax.jit(lambda x: attack.run(f, x, jnp.zeros(1, int), keys(1)))(x)
    assert not found.success.any()
    assert found.steps[0] == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"p": 3.0}, "p is 3; this attack knows 1, 2, inf"),
        ({"epsilon": -0.1}, "epsilon is -0.1"),
        ({"epsilon": math.nan}, "epsilon is nan"),
        ({"num_steps": 0}, "num_steps is 0"),
        ({"num_restarts": 0}, "num_restarts is 0"),
        ({"num_targets": 1.5}, "num_targets is 1.5"),
        ({"loss": "accuracy"}, "loss is 'accuracy'; it may be .*dlr_targeted"),
        ({"keep": "last"}, "keep is 'last'; it may be 'success' or 'loss'"),
        ({"loss": "dlr_targeted", "targeted": True}, "targeted is True"),
        ({"bounds": (1.0, 0.0)}, "bounds is"),
    ],
)
def test_bad_options_are_refused_by_name(options, message) -> None:
    with pytest.raises(ValueError, match=message):
        attacks.apgd(**({"p": 2.0, "epsilon": 0.1} | options))


def test_a_missing_key_is_refused() -> None:
    with pytest.raises(ValueError, match="key is None"):
        attacks.apgd(p=2.0, epsilon=0.1)(network, images(1), jnp.zeros(1, int))
