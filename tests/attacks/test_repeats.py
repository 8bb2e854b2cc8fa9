"""Searches that run several times, compared with loops in NumPy."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opnorm import attacks
from opnorm.attacks import parts, repeats
from opnorm.attacks.stage import Stage, make_problem

NUM_STEPS, NUM_RESTARTS, NUM_TARGETS = 3, 2, 3
X = np.linspace(0.2, 0.8, 6).reshape(3, 2).astype(np.float32)
# The label is class 0. The last class of row 1 is masked; row 2 has one other class.
LOGITS = np.float32([[9, 3, 2, 1], [9, 1, 2, -np.inf], [9, -np.inf, 4, -np.inf]])
TARGETS = [[1, 2, 3], [2, 1], [2]]


class State(NamedTuple):
    delta: jax.Array
    log: jax.Array


def scripted(values, hits):
    """A search whose step i of row b finds ``values[b, i]``; it logs its turns."""

    def init(f, problem):
        del f
        return State(jnp.zeros_like(problem.x), jnp.zeros((3, 18, 3), jnp.int32))

    def step(f, problem, state, turn):
        del f
        i = turn.run * NUM_STEPS + turn.step
        target = jnp.full(3, -1) if turn.target is None else turn.target
        entry = [jnp.full(3, turn.run), jnp.full(3, turn.step), target]
        log = state.log.at[:, i].set(jnp.stack(entry, axis=1))
        delta = jnp.zeros_like(problem.x) + 0.01 * (i + 1)
        new = parts.Best(delta, jnp.asarray(values)[:, i], jnp.asarray(hits)[:, i])
        return State(delta, log), new, turn.step > 0

    return repeats.Search(NUM_STEPS, init, step)


def run(steps):
    """The number of the step that each row keeps from 1 on, steps taken, the log."""
    stage = Stage("scripted", *steps)
    problem = make_problem(jnp.asarray(X), jnp.zeros(3, int))

    def f(x):
        return jnp.asarray(LOGITS) + 0 * x[:, :1]

    @jax.jit
    def search():
        state = stage.init(f, problem)
        state, taken = stage.advance(f, problem, state, 0, stage.num_steps)
        return stage.finish(problem, state), taken, state.search.log

    found, taken, log = map(np.asarray, search())
    return np.rint((found - X)[:, 0] * 100).astype(int), taken, log


@pytest.mark.parametrize("keep", ["value", "goal", "success"])
def test_the_best_of_all_runs_is_kept(keep) -> None:
    draw = np.random.default_rng(0)
    values = draw.normal(size=(3, 18)).astype(np.float32)
    hits = draw.uniform(size=values.shape) < [[0.0], [0.1], [0.5]]
    steps = repeats.repeat(
        scripted(values, hits),
        None,
        num_restarts=NUM_RESTARTS,
        num_targets=NUM_TARGETS,
        keep=keep,
    )
    assert steps.num_steps == 18
    kept, taken, log = run(steps)
    for row, classes in enumerate(TARGETS):
        best, count = (False, -np.inf, 0), 0
        for i in range(NUM_STEPS * NUM_RESTARTS * len(classes)):
            number, place = divmod(i, NUM_STEPS)
            target = classes[number // NUM_RESTARTS]
            np.testing.assert_array_equal(log[row, i], [number, place, target])
            count += 1
            if place == 0:
                continue
            hit = hits[row, i] and keep != "value"
            best = max(best, (hit, values[row, i], i + 1))
            if keep == "success" and hit:
                break
        assert (kept[row], taken[row]) == (best[2], count), (row, keep)


def test_one_run_ends_with_its_last_iterate_or_at_a_success() -> None:
    hits = np.zeros((3, 18), bool)
    hits[1, 1] = True
    search = scripted(np.zeros((3, 18), np.float32), hits)
    kept, taken, _ = run(repeats.once(search, None, stops=False))
    np.testing.assert_array_equal(kept, 3)
    np.testing.assert_array_equal(taken, 3)
    kept, taken, _ = run(repeats.once(search, None, stops=True))
    np.testing.assert_array_equal(kept, [3, 2, 3])
    np.testing.assert_array_equal(taken, [3, 2, 3])


def test_the_default_steps_cross_the_ball() -> None:
    assert attacks.default_step_size(0.5, 10) == 0.1
    assert attacks.default_step_size(0.5, 0) == 1.0
