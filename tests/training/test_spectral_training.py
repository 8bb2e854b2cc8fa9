"""Training with bounded layers, with WRM, with other labels and smaller images."""

import dataclasses

import jax
import numpy as np
import pytest

from opnorm import attacks, data, operators, training

TINY = training.Config(
    model="mlp",
    width=8,
    epochs=2,
    batch_size=16,
    train_examples=48,
    seed=3,
    optimizer="sgd",
    learning_rate=0.05,
    # Half of what a step takes to compile, and nothing here is about it.
    augment=False,
)
DIVIDED = dataclasses.replace(TINY, spectral_norm_bound=0.7)
CLIPPED = dataclasses.replace(DIVIDED, spectral_norm_method="clip")
ONCE = dataclasses.replace(DIVIDED, spectral_norm_method="clip_once", epochs=1)
# Both forms of the division are one for dense layers.
CAREFUL = dataclasses.replace(
    DIVIDED,
    spectral_norm_method="normalize_kernels",
    spectral_norm_steps=100,
    method="wrm",
    num_steps=1,
    epochs=1,
    accumulation_steps=2,
)


def leaves(tree):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]


def assert_identical(first, second):
    for a, b in zip(leaves(first), leaves(second), strict=True):
        np.testing.assert_array_equal(a, b)


def train(config, train_set, devices=1, **options):
    mesh = training.data_mesh(jax.devices()[:devices])
    return training.train(
        config, train_set=train_set, mesh=mesh, show_progress=False, **options
    )


@jax.jit
def _apply(network, x):
    return network(x)


def logits(trained):
    """Logits of the network of a result or of a run, for four drawn images."""
    x = np.random.default_rng(0).uniform(size=(4, 32, 32, 3)).astype(np.float32)
    return np.asarray(_apply(trained.network, x))


def norms(params):
    return [np.linalg.norm(layer["kernel"], 2) for layer in params.values()]


@pytest.fixture(scope="module")
def whole(train_set):
    """Uninterrupted runs on one device."""
    return {
        config.spectral_norm_method: train(config, train_set)
        for config in (DIVIDED, CLIPPED, CAREFUL)
    }


def test_layers_have_at_most_the_bound(whole):
    # Vectors of 20 steps before the training and one in each of its updates.
    np.testing.assert_allclose(norms(whole["normalize"].params), 0.7, rtol=0.03)
    np.testing.assert_allclose(norms(whole["clip"].params), 0.7, rtol=1e-5)
    careful = norms(whole["normalize_kernels"].params)
    np.testing.assert_allclose(careful, 0.7, rtol=1e-4)
    # The metrics tell the norm that is divided by.
    assert whole["normalize"].metrics["largest_norm"] > 0.9


@pytest.mark.parametrize("config", [DIVIDED, CLIPPED], ids=["normalize", "clip"])
def test_an_interrupted_run_ends_bit_identical_and_is_loaded_bounded(
    config, whole, train_set, tmp_path, interrupt
):
    # After the first epoch's end, and before the second's.
    with pytest.raises(KeyboardInterrupt):
        train(
            config,
            interrupt(train_set, after=5),
            directory=tmp_path,
            checkpoint_every=1,
        )
    resumed = train(config, train_set, directory=tmp_path)
    expected = whole[config.spectral_norm_method]
    assert_identical(expected.params, resumed.params)
    run = training.load_run(tmp_path)
    assert run.config == config
    assert run.metadata["image_shape"] == [32, 32, 3]
    assert_identical(expected.params, run.network.params)
    np.testing.assert_array_equal(logits(expected), logits(run))
    # Networks of one structure share programs.
    structures = map(jax.tree.structure, (expected.network, run.network))
    assert len(set(structures)) == 1
    # Runs that start from it start from the bounded network.
    later = dataclasses.replace(TINY, init_from=str(tmp_path))
    start = training.load_run(later.init_from).network
    program = training.make_program(later, train_set, training.data_mesh())
    begun = program.initial_state(later.seed, start)
    assert_identical(begun.params, run.network.params)


@pytest.mark.parametrize("config", [CAREFUL, CLIPPED], ids=["normalize", "clip"])
def test_one_and_eight_devices_train_alike(config, whole, train_set):
    one = whole[config.spectral_norm_method]
    more = train(config, train_set, 8, parameter_sharding="fsdp")
    np.testing.assert_allclose(more.metrics["loss"], one.metrics["loss"], rtol=1e-5)
    for a, b in zip(leaves(one.params), leaves(more.params), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)


def test_convolutions_are_bounded_for_the_images_they_see(train_set):
    config = dataclasses.replace(DIVIDED, model="alexnet", width=3, epochs=1)
    small = dataclasses.replace(train_set, images=train_set.images[:, 8:24, 8:24])
    result = train(config, small)
    module = training.build_model(config, 10)
    x = jax.ShapeDtypeStruct((1, 16, 16, 3), np.float32)
    layers = operators.layers(module, {"params": result.params}, x)
    for layer in (layer for layer in layers if layer.kind == "convolution"):
        size = int(np.prod(layer.input_shape))
        images = jax.lax.conv_general_dilated(
            np.eye(size, dtype=np.float32).reshape(size, *layer.input_shape),
            layer.kernel,
            layer.strides,
            layer.padding,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        norm = np.linalg.norm(np.asarray(images).reshape(size, -1), 2)
        np.testing.assert_allclose(norm, 0.7, rtol=0.05)
        # Kernel matrices alone have smaller norms.
        matrix = np.reshape(layer.kernel, (-1, layer.kernel.shape[-1]))
        assert np.linalg.norm(matrix, 2) < 0.6


def test_a_single_clip_is_that_of_sedghi_and_leaves_norms_above_the_bound(train_set):
    config = dataclasses.replace(ONCE, model="fixup", depth=8, width=2)
    small = dataclasses.replace(train_set, images=train_set.images[:, 8:24, 8:24])
    mesh = training.data_mesh(jax.devices()[:1])
    program = training.make_program(config, small, mesh)
    before = jax.tree.map(lambda leaf: 3 * leaf, program.initial_state(3).params)
    # The given parameters are donated.
    after = program.clip(jax.tree.map(np.copy, before))
    for name, size in (("conv", 16), ("stage3_block1/conv1", 8)):
        kernel, found = (_leaf(tree, f"{name}/kernel") for tree in (before, after))
        blocks = np.fft.fft2(kernel, (size, size), axes=(0, 1))
        left, values, right = np.linalg.svd(blocks, full_matrices=False)
        kept = (left * np.minimum(values, 0.7)[..., None, :]) @ right
        corner = np.fft.ifft2(kept, axes=(0, 1)).real[:3, :3]
        np.testing.assert_allclose(found, corner, rtol=1e-3, atol=1e-5)
        assert values.max() > 0.8
        again = np.fft.fft2(found, (size, size), axes=(0, 1))
        assert np.linalg.svd(again, compute_uv=False).max() > 0.72


def _leaf(tree, path):
    for part in path.split("/"):
        tree = tree[part]
    return np.asarray(tree, np.float64)


def setup(config, train_set):
    """A network, a batch, and what its method makes of them."""
    objective = training.make_objective(config, 10, train_set.image_shape)
    params, stats = objective.init(jax.random.key(0))
    net = objective.modes
    batch = training.Batch(
        data.to_float(train_set.images[:16]), train_set.labels[:16], np.arange(16)
    )
    method = objective.method
    _, auxiliary = jax.jit(method.loss)(params, stats, {}, batch, jax.random.key(2))
    return lambda x: net.infer(params, stats, x), batch, auxiliary.metrics


def cross_entropy(f, x, labels):
    return -np.asarray(jax.nn.log_softmax(f(x)))[np.arange(len(x)), labels].mean()


@pytest.mark.parametrize("labels", ["true", "predicted"])
def test_attacks_lead_away_from_the_labels_that_are_asked_for(labels, train_set):
    config = dataclasses.replace(
        TINY,
        method="adversarial_only",
        num_steps=3,
        random_start=False,
        attack_labels=labels,
    )
    f, batch, metrics = setup(config, train_set)
    predicted = np.argmax(f(batch.images), axis=-1)
    assert np.mean(predicted == batch.labels) < 0.5
    away_from = predicted if labels == "predicted" else batch.labels
    options = {"p": 2, "epsilon": 0.5, "num_steps": 3, "random_start": False}
    # As published, and as earlier runs have trained.
    attack = attacks.pga(skip_blocked=False, **options)
    found = attack(f, batch.images, away_from, jax.random.key(0))
    expected = cross_entropy(f, found, batch.labels)
    np.testing.assert_allclose(metrics["adversarial_loss"], expected, rtol=1e-5)
    stronger = attacks.pga(**options)(f, batch.images, away_from)
    assert np.max(np.abs(stronger - found)) > 1e-3


def test_wrm_trains_on_perturbations_that_pay_for_their_length(train_set):
    config = dataclasses.replace(TINY, method="wrm", num_steps=4, gamma=0.5)
    f, batch, metrics = setup(config, train_set)
    attack = attacks.wrm(gamma=0.5, num_steps=4)
    found = attack(f, batch.images, batch.labels, jax.random.key(0))
    expected = cross_entropy(f, found, batch.labels)
    assert expected > 1.01 * cross_entropy(f, batch.images, batch.labels)
    np.testing.assert_allclose(metrics["adversarial_loss"], expected, rtol=1e-5)


def test_random_labels_are_drawn_once_for_all_seeds():
    config = dataclasses.replace(TINY, train_examples=500)
    labels = training.load_train_set(config).labels
    random = dataclasses.replace(config, random_labels=1.0)
    found = training.load_train_set(random)
    again = training.load_train_set(dataclasses.replace(random, seed=9))
    np.testing.assert_array_equal(found.labels, again.labels)
    np.testing.assert_array_equal(found.images, training.load_train_set(config).images)
    # A tenth of the draws is the label that was there: 50, with a deviation of 7.
    assert 20 < np.sum(found.labels == labels) < 80
    assert np.bincount(found.labels, minlength=10).min() > 20
    half = data.randomize_labels(training.load_train_set(config), 0.5, seed=1)
    assert 185 < np.sum(half.labels != labels) <= 250
    with pytest.raises(ValueError, match=r"fraction is 1.5"):
        data.randomize_labels(half, 1.5, seed=1)
    with pytest.raises(ValueError, match="seed is -1"):
        data.randomize_labels(half, 0.5, seed=-1)


def test_images_in_memory_may_lose_their_margins():
    config = dataclasses.replace(TINY, image_size=27)
    whole = training.load_train_set(TINY)
    middle = training.load_train_set(config)
    np.testing.assert_array_equal(middle.images, whole.images[:, 2:29, 2:29])
    np.testing.assert_array_equal(middle.labels, whole.labels)
    # A network is shown what it was trained on.
    assert training.image_size(config) == 27
    assert training.image_size(TINY) is None
    assert training.image_size(TINY, "imagenet2012") == 224
    with pytest.raises(ValueError, match=r"image_size is 33.*32x32"):
        training.load_train_set(dataclasses.replace(TINY, image_size=33))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"spectral_norm_bound": 0.0}, "spectral_norm_bound is 0.0.*positive"),
        ({"spectral_norm_method": "clip"}, "without spectral_norm_bound"),
        (
            {"spectral_norm_method": "clip", "spectral_norm_bound": float("inf")},
            "spectral_norm_bound is inf.*finite",
        ),
        (
            {"spectral_norm_method": "svd", "spectral_norm_bound": 1.0},
            "spectral_norm_method is 'svd'.*normalize_kernels",
        ),
        ({"spectral_norm_steps": 2}, "spectral_norm_steps is 2; without"),
        (
            {
                "spectral_norm_method": "clip",
                "spectral_norm_bound": 1.0,
                "spectral_norm_steps": 2,
            },
            "spectral_norm_steps is 2.*'clip' does not use",
        ),
        (
            {"spectral_norm_method": "clip_once", "spectral_norm_bound": float("inf")},
            "spectral_norm_bound is inf.*finite",
        ),
        ({"depth": 20}, "depth is 20, which mlp does not.*to fixup"),
        ({"model": "fixup", "depth": 21}, "depth is 21; it must be 6 n"),
        ({"scalar_biases": True}, "scalar_biases is True.*to fixup, fixup56"),
        ({"epsilon_unit": "levels"}, "epsilon_unit is 'levels'.*pixels, standardized"),
        (
            {"epsilon_unit": "standardized", "normalization": "none"},
            "epsilon_unit is 'standardized'.*'none' has no standard deviation",
        ),
        (
            {"epsilon_unit": "standardized", "normalization": "whitened"},
            "epsilon_unit is 'standardized'.*'whitened' has another standard deviation",
        ),
        ({"gamma": 1.0}, "gamma is 1.0.*wrm"),
        ({"method": "wrm", "gamma": -1.0}, "gamma is -1.0"),
        ({"attack_labels": "predicted"}, "attack_labels is 'predicted'.*standard"),
        ({"random_labels": 2.0}, "random_labels is 2.0"),
        (
            {"random_labels": 0.5, "dataset": "imagenet2012"},
            "random_labels is 0.5.*in memory",
        ),
    ],
)
def test_bad_configurations_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        training.validate(dataclasses.replace(TINY, **change))
