"""Accuracy, robust accuracy and spectra over a data set in filled-up batches."""

import functools
import gc
import math
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from opnorm import analysis, attacks

Partial = jax.tree_util.Partial
W = np.random.default_rng(5).normal(size=(6, 3)).astype(np.float32)
IMAGES = np.random.default_rng(6).uniform(0.3, 0.7, (11, 3, 2)).astype(np.float32)
LABELS = np.random.default_rng(7).integers(0, 3, 11)


def linear(weight, x):
    return x.reshape(len(x), -1) @ weight


def affine(w, x):
    margin = (x.reshape(len(x), -1) - 0.5) @ w
    return jnp.stack([margin, -margin], axis=1) / 2


NETWORK = Partial(linear, W)


def fgm(epsilon):
    return attacks.fgm(p=math.inf, epsilon=epsilon)


def noise(epsilon):
    return attacks.uniform_noise(p=math.inf, epsilon=epsilon)


@pytest.mark.parametrize("batch_size", [1, 4, 11, 100])
def test_accuracy_counts_every_example_once(batch_size: int) -> None:
    found = analysis.evaluate_accuracy(NETWORK, IMAGES, LABELS, batch_size=batch_size)
    hits = (IMAGES.reshape(11, 6) @ W).argmax(axis=1) == LABELS
    np.testing.assert_array_equal(found.correct, hits)
    assert found.mean == pytest.approx(hits.mean())
    assert found.standard_error == pytest.approx(hits.std(ddof=1) / math.sqrt(11))


def test_a_label_among_the_top_k_counts() -> None:
    order = np.argsort(IMAGES.reshape(11, 6) @ W, axis=1)
    found = analysis.evaluate_accuracy(NETWORK, IMAGES, LABELS, top_k=2)
    np.testing.assert_array_equal(found.correct, order[:, 0] != LABELS)
    with pytest.raises(ValueError, match="top_k is 3; it must be"):
        analysis.evaluate_accuracy(NETWORK, IMAGES, LABELS, top_k=3)


def test_bytes_are_pixels_over_255() -> None:
    images = (IMAGES * 255).astype(np.uint8)
    bytes_ = analysis.evaluate_accuracy(NETWORK, images, LABELS)
    pixels = images.astype(np.float32) / 255
    floats = analysis.evaluate_accuracy(NETWORK, pixels, LABELS)
    np.testing.assert_array_equal(bytes_.correct, floats.correct)


def test_robust_accuracy_is_the_closed_form_of_an_affine_network() -> None:
    w = W[:, 0]
    margins = (IMAGES.reshape(11, 6).astype(np.float64) - 0.5) @ w
    labels = (margins < 0).astype(int)
    epsilons = [0.0, 0.01, 0.03, 0.1]
    found = analysis.robust_accuracy(
        Partial(affine, w),
        IMAGES,
        labels,
        attack=fgm,
        epsilons=epsilons,
        batch_size=4,
        key=jax.random.key(0),
    )
    for epsilon, accuracy in zip(epsilons, found, strict=True):
        safe = np.abs(margins) > epsilon * np.abs(w).sum()
        np.testing.assert_array_equal(accuracy.correct, safe)
    assert found[0].mean == 1
    assert found[-1].mean < 1


def test_networks_of_one_structure_compile_once_for_all_epsilons_and_batches() -> None:
    traces, attack_traces, counts = [], [], []

    def counted(weight, x):
        traces.append(x.shape)
        return linear(weight, x)

    def attack(epsilon):
        if isinstance(epsilon, jax.core.Tracer):
            attack_traces.append(epsilon)
        return fgm(epsilon)

    given = {"batch_size": 4, "key": jax.random.key(0)}
    for weight in (W, 2 * W, -W):
        f = Partial(counted, weight)
        clean = analysis.evaluate_accuracy(f, IMAGES, LABELS, batch_size=4)
        budgets = [0.0, 0.1, 0.2]
        curve = analysis.robust_accuracy(
            f, IMAGES, LABELS, attack=attack, epsilons=budgets, **given
        )
        norms = analysis.jacobian_norms(f, IMAGES, method="dense", **given)
        counts.append((len(traces), len(attack_traces)))
        hits = (IMAGES.reshape(11, 6) @ weight).argmax(axis=1) == LABELS
        np.testing.assert_array_equal(clean.correct, hits)
        np.testing.assert_array_equal(curve[0].correct, hits)
        expected = np.linalg.norm(weight, 2)
        np.testing.assert_allclose(norms.values, [expected] * 11, rtol=1e-4)
    # The attack has three programs: its beginning, its steps and its end.
    assert counts[0][1] == 3
    assert counts == counts[:1] * 3


def test_a_plain_function_whose_closure_changes_gives_fresh_results() -> None:
    weights, traces = {"matrix": W}, []

    def f(x):
        traces.append(x.shape)
        return linear(weights["matrix"], x)

    for weight, count in ((W, 11), (-W, 8)):
        weights["matrix"] = jnp.asarray(weight)
        images, labels = IMAGES[:count], LABELS[:count]
        found = analysis.evaluate_accuracy(f, images, labels, batch_size=4)
        hits = (images.reshape(count, 6) @ weight).argmax(axis=1) == labels
        np.testing.assert_array_equal(found.correct, hits)
        (curve,) = analysis.robust_accuracy(
            f,
            images,
            labels,
            attack=fgm,
            epsilons=[0.0],
            batch_size=8,
            key=jax.random.key(0),
        )
        np.testing.assert_array_equal(curve.correct, hits)
        traces.append(None)
    # A plain function is traced once in each call, for three batches as for two, and
    # for two as for one.
    first = traces.index(None)
    assert traces[: first + 1] == traces[first + 1 :]


def test_nothing_keeps_a_plain_function_alive() -> None:
    class Weights(np.ndarray):
        """An array that can be referred to weakly."""

    weights = W.view(Weights)
    alive = weakref.ref(weights)
    f = functools.partial(lambda weights, x: linear(np.asarray(weights), x), weights)
    analysis.evaluate_accuracy(f, IMAGES, LABELS, batch_size=4)
    del f, weights
    gc.collect()
    assert alive() is None


def test_perturbations_are_those_of_the_attack() -> None:
    found = analysis.perturbations(
        NETWORK,
        IMAGES,
        LABELS,
        attack=fgm,
        epsilon=0.1,
        batch_size=4,
        key=jax.random.key(0),
    )
    attacked = fgm(0.1)(NETWORK, jnp.asarray(IMAGES), jnp.asarray(LABELS))
    np.testing.assert_allclose(found, attacked - IMAGES, atol=1e-6)


def test_batches_have_different_noise() -> None:
    found = analysis.perturbations(
        NETWORK,
        IMAGES[:8],
        LABELS[:8],
        attack=noise,
        epsilon=0.1,
        batch_size=4,
        key=jax.random.key(0),
    )
    assert np.all(np.abs(found) <= 0.1 + 1e-6)
    assert np.all(np.any(found[:4] != found[4:], axis=(1, 2)))


@pytest.mark.parametrize("k", [None, 1, 2])
def test_the_spectrum_of_a_linear_network_is_that_of_its_matrix(k) -> None:
    found = analysis.jacobian_spectrum(NETWORK, IMAGES, k=k, batch_size=4)
    left, values, _ = np.linalg.svd(W, full_matrices=False)
    np.testing.assert_allclose(found.values, [values[:k]] * 11, rtol=1e-4)
    assert found.right.shape == IMAGES.shape
    top = np.broadcast_to(left[:, 0], (11, 6))
    cosine = analysis.alignment(found.right.reshape(11, 6), top)
    np.testing.assert_allclose(cosine, 1.0, atol=1e-5)


@pytest.mark.parametrize(("p", "q"), [(1.0, 1.0), (2.0, 2.0), (math.inf, math.inf)])
def test_the_norms_of_a_linear_network_are_those_of_its_matrix(p, q) -> None:
    # W multiplies from the right, so the Jacobian is its transpose.
    expected = np.linalg.norm(W.T, p)
    # Iterations for other norms than the spectral one may end at a local maximum.
    for method in ("dense", "iterative") if p == 2 else ("dense",):
        found = analysis.jacobian_norms(
            NETWORK,
            IMAGES,
            p=p,
            q=q,
            batch_size=4,
            key=jax.random.key(0),
            method=method,
            num_steps=30,
            num_restarts=10,
        )
        np.testing.assert_allclose(found.values, [expected] * 11, rtol=1e-4)
        right = found.right.reshape(11, 6)
        np.testing.assert_allclose(np.linalg.norm(right, p, axis=1), 1, rtol=1e-5)
        gain = np.linalg.norm(right @ W, q, axis=1)
        np.testing.assert_allclose(gain, found.values, rtol=1e-5)
    given = {"p": p, "q": q, "method": "dense", "key": jax.random.key(0)}
    halved = analysis.jacobian_norms(NETWORK, IMAGES, scale=0.5, **given)
    np.testing.assert_allclose(halved.values, [expected / 2] * 11, rtol=1e-4)


def test_an_nnx_module_that_is_updated_in_place_gives_fresh_results() -> None:
    class Flat(nnx.Module):
        def __init__(self):
            self.linear = nnx.Linear(6, 3, use_bias=False, rngs=nnx.Rngs(0))

        def __call__(self, x):
            return self.linear(x.reshape(len(x), -1))

    f = Flat()
    for weight in (W, -W, 2 * W):
        f.linear.kernel[...] = jnp.asarray(weight)
        found = analysis.evaluate_accuracy(f, IMAGES, LABELS)
        hits = (IMAGES.reshape(11, 6) @ weight).argmax(axis=1) == LABELS
        np.testing.assert_array_equal(found.correct, hits)
        values = analysis.singular_values(f, IMAGES[:2])
        expected = np.linalg.svd(weight, compute_uv=False)
        np.testing.assert_allclose(values, [expected] * 2, rtol=1e-4)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (
            LABELS + 1,
            "labels has values from 1 to 3; the network has 3 classes.*0 to 2",
        ),
        (LABELS - 3, "labels has values from -3 to -1"),
        (LABELS.astype(float), "labels has shape .11,. and dtype float64.*integer"),
        (np.eye(3)[LABELS], "labels has shape .11, 3. and dtype float64.*integer"),
    ],
)
def test_labels_that_are_no_classes_are_refused(labels, message) -> None:
    budget = {"epsilons": [0.1]}, {"epsilon": 0.1}
    for measure, options in (
        (analysis.evaluate_accuracy, {}),
        (analysis.robust_accuracy, budget[0] | {"attack": fgm}),
        (analysis.perturbations, budget[1] | {"attack": fgm}),
        (analysis.loss_regularity, {}),
        (analysis.loss_regularity, {"loss": attacks.cross_entropy}),
        (
            analysis.loss_regularity,
            {"loss": functools.partial(analysis.top_k_margin, k=2)},
        ),
        (analysis.input_curvature, {}),
        (analysis.sanity_checks, {"p": 2.0, "epsilon": 0.1}),
    ):
        if measure not in (analysis.evaluate_accuracy, analysis.input_curvature):
            options = options | {"key": jax.random.key(0)}
        with pytest.raises(ValueError, match=message):
            measure(NETWORK, IMAGES, labels, **options)
    with pytest.raises(ValueError, match=message):
        analysis.parameter_spectrum(
            NETWORK, IMAGES, labels, num_steps=2, key=jax.random.key(0)
        )


BRIGHT = np.where(np.arange(2) == 0, 250, 3).astype(np.uint8)
ENTRIES = {
    "attack_examples": {"attack": fgm, "epsilons": [0.1]},
    "robust_accuracy": {"attack": fgm, "epsilons": [0.1]},
    "perturbations": {"attack": fgm, "epsilon": 0.1},
    "sanity_checks": {"p": 2.0, "epsilon": 0.1},
    "evaluate_accuracy": {},
}


@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.parametrize(
    ("images", "bounds", "message"),
    [
        (2 * IMAGES - 1, (0.0, 1.0), "from -0.3.* outside of the bounds .0.0, 1.0."),
        (255 * IMAGES, (0.0, 1.0), "images has values from 7.*; divide bytes by 255, "),
        (IMAGES * 0 + BRIGHT, (0.0, 0.25), "images has values from .* to 250, outside"),
        ((IMAGES * 0 + BRIGHT).astype(np.uint8), (0.0, 0.25), "to 0.98.*outside"),
        (IMAGES * math.nan, (0.0, 1.0), "images has values that are not finite"),
        (np.round(IMAGES).astype(np.uint8), (0.0, 1.0), "no value above 1.* as floats"),
    ],
)
def test_images_outside_the_bounds_are_refused(entry, images, bounds, message) -> None:
    options = dict(ENTRIES[entry])
    if "attack" in options:
        options["attack"] = lambda epsilon: attacks.fgm(
            p=math.inf, epsilon=epsilon, bounds=bounds
        )
    else:
        options["bounds"] = bounds
    if entry != "evaluate_accuracy":
        options["key"] = jax.random.key(0)
    with pytest.raises(ValueError, match=message):
        getattr(analysis, entry)(NETWORK, images, LABELS, **options)


def test_rounding_outside_the_bounds_is_clipped() -> None:
    images = np.where(IMAGES > 0.5, np.float32(1 + 9e-7), np.float32(-9e-7))
    given = {"attack": fgm, "batch_size": 11, "key": jax.random.key(0)}
    whole = np.clip(images, 0, 1)
    for name, budget in (("perturbations", {"epsilon": 1e-7}), ("attack_examples", {})):
        options = given | (budget or {"epsilons": [1e-7], "keep_points": True})
        found, same = (
            getattr(analysis, name)(NETWORK, x, LABELS, **options)
            for x in (images, whole)
        )
        for left, right in zip(
            jax.tree.leaves(found), jax.tree.leaves(same), strict=True
        ):
            np.testing.assert_array_equal(left, right)
    assert same.x_adv.min() >= 0
    assert same.x_adv.max() <= 1


def test_accuracy_takes_images_in_other_units_where_that_is_said() -> None:
    standardised = (IMAGES - 0.5) / 0.1
    hits = (standardised.reshape(11, 6) @ W).argmax(axis=1) == LABELS
    for bounds in (None, (-3.0, 3.0)):
        found = analysis.evaluate_accuracy(NETWORK, standardised, LABELS, bounds=bounds)
        np.testing.assert_array_equal(found.correct, hits)
    with pytest.raises(ValueError, match="bounds is"):
        analysis.evaluate_accuracy(NETWORK, IMAGES, LABELS, bounds=(1.0, 0.0))


def test_a_network_of_one_logit_is_refused_whatever_the_labels() -> None:
    def one(w, x):
        return linear(w, x)[:, :1]

    def noise_of_classes(epsilon):
        return attacks.uniform_noise(p=math.inf, epsilon=epsilon, num_draws=2)

    zeros = np.zeros(11, int)
    for entry, options in (
        *ENTRIES.items(),
        ("perturbations", {"attack": noise_of_classes, "epsilon": 0.1}),
        ("loss_regularity", {}),
        ("input_curvature", {}),
    ):
        if entry not in ("evaluate_accuracy", "input_curvature"):
            options = options | {"key": jax.random.key(0)}
        with pytest.raises(ValueError, match=r"has 1 logit; .*jnp.zeros_like\(z\), z"):
            getattr(analysis, entry)(Partial(one, W), IMAGES, zeros, **options)


def test_a_network_that_returns_no_logits_is_refused() -> None:
    for apply in (lambda w, x: x @ w[:2], lambda w, x: linear(w, x)[:, 0]):
        with pytest.raises(ValueError, match=r"logits have shape .*must be .B, K."):
            analysis.evaluate_accuracy(Partial(apply, W), IMAGES, LABELS)


def test_bad_arguments_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match="images and labels"):
        analysis.evaluate_accuracy(NETWORK, IMAGES, LABELS[:3])
    with pytest.raises(ValueError, match="images and labels"):
        analysis.evaluate_accuracy(NETWORK, IMAGES[:0], LABELS[:0])
    with pytest.raises(ValueError, match="images has dtype"):
        analysis.evaluate_accuracy(NETWORK, IMAGES.astype(int), LABELS)
    with pytest.raises(ValueError, match="batch_size"):
        analysis.evaluate_accuracy(NETWORK, IMAGES, LABELS, batch_size=0)
    with pytest.raises(ValueError, match="epsilons"):
        analysis.robust_accuracy(
            NETWORK,
            IMAGES,
            LABELS,
            attack=fgm,
            epsilons=[-0.1],
            key=jax.random.key(0),
        )


def test_attacks_that_robust_accuracy_cannot_count_are_refused() -> None:
    measure = functools.partial(
        analysis.robust_accuracy, NETWORK, epsilons=[0.1], key=jax.random.key(0)
    )

    def targeted(epsilon):
        return attacks.fgm(p=math.inf, epsilon=epsilon, targeted=True)

    with pytest.raises(ValueError, match="attack is targeted"):
        measure(IMAGES, LABELS, attack=targeted)
    with pytest.raises(ValueError, match="attack is the attack pga"):
        measure(IMAGES, LABELS, attack=attacks.pga(p=2, epsilon=0.1))
    with pytest.raises(ValueError, match="fgm has a budget, which must be given"):
        analysis.attack_examples(
            NETWORK, IMAGES, LABELS, attack=fgm, key=jax.random.key(0)
        )
    raw = jax.random.PRNGKey(0)
    with pytest.raises(ValueError, match="typed key"):
        analysis.robust_accuracy(
            NETWORK, IMAGES, LABELS, attack=fgm, epsilons=[0.1], key=raw
        )


def test_conditional_accuracy_counts_examples_that_are_correct_at_x() -> None:
    def accuracy(correct):
        return analysis.Accuracy(np.mean(correct), math.nan, np.array(correct))

    clean = accuracy([True, False, True, True, False])
    robust = accuracy([False, False, True, True, False])
    found = analysis.conditional_accuracy(clean, robust)
    assert found.counted == 3
    assert found.mean * clean.mean == pytest.approx(robust.mean)
    kept = np.array([0.0, 1, 1])
    assert found.standard_error == pytest.approx(kept.std(ddof=1) / math.sqrt(3))
    nothing = accuracy([False] * 5)
    assert np.isnan(analysis.conditional_accuracy(nothing, nothing).mean)
    with pytest.raises(ValueError, match="wrong in clean"):
        analysis.conditional_accuracy(robust, clean)
    with pytest.raises(ValueError, match="5 and 4 examples"):
        analysis.conditional_accuracy(clean, accuracy([False] * 4))
