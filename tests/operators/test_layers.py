"""Norms, singular values and bounds of the layers of networks, against NumPy."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from opnorm import linalg, models, operators
from tests.support.layer_networks import (
    Chain,
    Factor,
    chain,
    chain_layers,
    matrix,
    parameter,
    random_variables,
    residual,
)
from tests.support.matrices import dense_convolution


def matrices(layers):
    return [matrix(operators.layer_map(layer)) for layer in layers]


@functools.cache
def folded_matrices():
    return matrices(chain_layers())


@functools.cache
def measured():
    """All results for the layers of the chain, from one program."""

    @jax.jit
    def everything(layers):
        return {
            "norms": operators.layer_norms(layers),
            "lipschitz": operators.log_lipschitz_bound(layers, input_scale=(2, -3)),
            "gram": operators.log_lipschitz_bound(layers, method="gram_iteration"),
            **{
                form: (
                    operators.log_spectral_complexity(layers, form=form),
                    operators.singular_value_std(layers, form=form),
                )
                for form in ("operator", "kernel")
            },
        }

    return everything, everything(chain_layers())


def test_a_folded_layer_is_the_linear_part_of_convolution_and_batch_norm():
    module, variables = chain()
    jacobian = jax.jit(
        jax.jacrev(
            lambda x: module.apply(variables, x[None], method=Chain.normalized)[0]
        )
    )(jnp.zeros((5, 6, 4)))
    expected = np.asarray(jacobian).reshape(-1, 5 * 6 * 4)
    np.testing.assert_allclose(folded_matrices()[0], expected, rtol=1e-4, atol=1e-6)
    convolution, norm, *_ = matrices(chain_layers(batch_norm="separate")[:2])
    np.testing.assert_allclose(norm @ convolution, expected, rtol=1e-4, atol=1e-6)


def test_layer_maps_have_their_transposes():
    for layer, dense in zip(chain_layers(), folded_matrices(), strict=True):
        linear_map = operators.layer_map(layer)
        u = np.random.default_rng(0).normal(size=(1, *linear_map.out_shape))
        pulled = linear_map.rmatvec(jnp.asarray(u, jnp.float32))
        np.testing.assert_allclose(pulled.ravel(), dense.T @ u.ravel(), atol=1e-4)


def test_norms_are_those_of_the_dense_matrices_and_lie_between_the_bounds():
    norms = measured()[1]["norms"]
    exact = np.array([np.linalg.norm(dense, 2) for dense in folded_matrices()])
    np.testing.assert_allclose(norms.value, exact, rtol=1e-5)
    assert np.all(norms.residual <= 1e-2 * exact)
    assert np.all(norms.lower <= exact)
    assert np.all(exact <= norms.upper)
    np.testing.assert_allclose(norms.lower, exact, rtol=1e-4)
    np.testing.assert_allclose(norms.upper[1:], exact[1:], rtol=1e-4)
    assert norms.upper[0] < 1.3 * exact[0]
    layers = chain_layers()
    kernels = [np.asarray(layer.kernel, np.float64) for layer in layers]
    kernels[1] = np.diag(kernels[1])
    expected = [np.linalg.norm(k.reshape(-1, k.shape[-1]), 2) for k in kernels]
    np.testing.assert_allclose(norms.kernel_matrix, expected, rtol=1e-5)


def complexity(dense):
    spectral = np.array([np.linalg.norm(m, 2) for m in dense])
    frobenius = np.array([np.linalg.norm(m) for m in dense])
    product = np.sum(np.log(spectral))
    ratio = np.log(np.sum((frobenius / spectral) ** 2))
    return 2 * product + ratio, product, ratio


def kernel_matrices():
    kernels = [np.asarray(layer.kernel, np.float64) for layer in chain_layers()]
    kernels[1] = np.diag(kernels[1])
    return [k.reshape(-1, k.shape[-1]) for k in kernels]


def test_log_complexity_is_the_definition():
    results = measured()[1]
    expected = complexity(folded_matrices())
    np.testing.assert_allclose(results["operator"][0], expected, rtol=1e-4)
    expected = complexity(kernel_matrices())
    np.testing.assert_allclose(results["kernel"][0], expected, rtol=1e-4)


def test_std_is_that_of_all_singular_values():
    results = measured()[1]
    layer, *_ = chain_layers()
    periodic = linalg.convolution_map(
        layer.kernel, (6, 6, 4), strides=2, padding="CIRCULAR", groups=2
    )
    operator = [matrix(periodic), *kernel_matrices()[1:]]
    for form, dense in (("operator", operator), ("kernel", kernel_matrices())):
        expected = [np.std(np.linalg.svd(m, compute_uv=False)) for m in dense]
        np.testing.assert_allclose(results[form][1], expected, rtol=1e-4)


def test_lipschitz_bound_is_the_product_of_the_upper_bounds():
    results = measured()[1]
    expected = np.log(results["norms"].upper).sum()
    np.testing.assert_allclose(results["lipschitz"], expected + np.log(3), rtol=1e-5)
    assert expected - 1e-5 <= results["gram"] <= expected + 0.1


def test_a_zero_layer_has_no_complexity_and_no_norm():
    everything, _ = measured()
    layers = chain_layers()
    zero = layers[0].replace(kernel=jnp.zeros_like(layers[0].kernel))
    results = everything((zero, *layers[1:]))
    assert results["norms"].upper[0] == 0
    assert results["lipschitz"] == results["operator"][0].log_complexity == -np.inf
    assert np.isfinite(results["operator"][0].log_ratio)


@pytest.mark.parametrize("name", ["mlp", "cnn7"])
def test_lipschitz_bound_holds_for_the_jacobians_of_our_models(name):
    shape = (4, 24, 24, 3) if name == "cnn7" else (4, 4, 4, 3)
    std = (0.5, 0.25, 0.4)
    model = models.create(name, width=4, std=std)
    variables = random_variables(model, shape)
    layers = operators.layers(model, variables, jnp.zeros(shape), train=False)
    if name == "mlp":
        assert [layer.kernel.shape for layer in layers] == [(48, 4), (4, 4), (4, 10)]
    else:
        assert [layer.name for layer in layers] == [f"conv{i}" for i in range(1, 8)] + [
            "logits"
        ]
        assert [layer.batch_norm for layer in layers[:7]] == [
            f"norm{i}" for i in range(1, 8)
        ]
        assert [layer.padding for layer in layers[:7]] == ["SAME"] * 6 + ["VALID"]
        sizes = [24, 24, 12, 12, 6, 6, 3]
        channels = [3, 4, 4, 8, 8, 16, 16]
        expected = [(n, n, c) for n, c in zip(sizes, channels, strict=True)]
        assert [layer.input_shape for layer in layers] == [*expected, (32,)]
        kernel = variables["params"]["conv2"]["kernel"]
        variance = variables["batch_stats"]["norm2"]["var"]
        folded = np.asarray(kernel) / np.sqrt(np.asarray(variance) + 1e-5)
        np.testing.assert_allclose(layers[1].kernel, folded, rtol=1e-5)
    bound = jax.jit(
        lambda variables: operators.log_lipschitz_bound(
            operators.layers(model, variables, jnp.zeros(shape)),
            input_scale=[1 / s for s in std],
        )
    )(variables)
    x = np.random.default_rng(1).uniform(size=shape).astype(np.float32)
    f = functools.partial(model.apply, variables)
    norms = jax.jit(lambda x: operators.jacobian_norm(f, x, method="dense").value)(x)
    assert 0 < np.max(norms) <= np.exp(bound)


@pytest.mark.parametrize(
    ("name", "path", "norm"),
    [
        ("resnet", "stage2_block1/conv2", "stage2_block1/norm2"),
        ("resnext", "stage1_block1/conv2", "stage1_block1/norm2"),
    ],
)
def test_norms_of_strided_and_of_grouped_layers_are_those_of_dense_matrices(
    name, path, norm
):
    layers, variables, _ = residual(name)
    # The map is small, with an odd and an even size, so that its matrix is small.
    layer = layers[path].replace(input_shape=(5, 4, layers[path].input_shape[-1]))
    with jax.enable_x64(True):
        wide = layer.replace(kernel=jnp.asarray(layer.kernel, jnp.float64))
        norms = jax.tree.map(np.asarray, jax.jit(operators.layer_norms)([wide]))

    def at(tree, path):
        return functools.reduce(lambda tree, part: tree[part], path.split("/"), tree)

    kernel = np.asarray(at(variables["params"], path)["kernel"], np.float64)
    scale = np.asarray(at(variables["params"], norm)["scale"], np.float64)
    variance = np.asarray(at(variables["batch_stats"], norm)["var"], np.float64)
    kernel = kernel * scale / np.sqrt(variance + 1e-5)
    pads = [(1, 1)] * 2
    dense = dense_convolution(kernel, (5, 4), layer.strides, pads, (1, 1), layer.groups)
    exact = np.linalg.norm(dense, 2)
    assert layer.strides[0] * layer.groups == 2
    np.testing.assert_allclose(norms.value[0], exact, rtol=1e-6)
    assert norms.lower[0] <= exact * (1 + 1e-6)
    assert exact <= norms.upper[0] * (1 + 1e-6)


@pytest.mark.parametrize(
    ("then", "named"),
    [
        (lambda m, x: x * parameter(m), "'gain'"),
        (lambda m, x: x * parameter(m, 3), "'gain'"),
        (lambda m, x: x / parameter(m, 3), "'gain'"),
        (lambda m, x: x * jnp.exp(1 + parameter(m)), "'gain'"),
        (lambda m, x: jnp.where(x > 0, x, parameter(m) * x), "'gain'"),
        (lambda m, x: jax.jit(jnp.multiply)(x, parameter(m)), "'gain'"),
        (lambda m, x: nn.LayerNorm()(x), "'LayerNorm_0'"),
        (lambda m, x: nn.RMSNorm(use_scale=False)(x), "'RMSNorm_0'"),
        (lambda m, x: nn.GroupNorm(3)(x), "'GroupNorm_0'"),
    ],
)
def test_bounds_refuse_networks_that_multiply_elsewhere(then, named):
    module, x = Factor(then), jnp.ones((1, 4))
    variables = random_variables(module, x.shape)
    layers = operators.layers(module, variables, x)
    assert [layer.kind for layer in layers] == ["dense"]
    for bound in (
        operators.log_lipschitz_bound,
        operators.log_spectral_complexity,
        functools.partial(operators.log_capacity, scheme="erm"),
    ):
        with pytest.raises(ValueError, match=named):
            bound(layers)


def test_a_bound_refuses_layers_without_their_batch_norm():
    with pytest.raises(ValueError, match=r"after.*norm.*'fold' or 'separate'"):
        operators.log_lipschitz_bound(chain_layers(batch_norm="ignore"))


def test_bad_options_are_named():
    with pytest.raises(ValueError, match=r"module is Sequential; it must be .* linen"):
        operators.layers(nnx.Sequential(), {}, jnp.ones((2, 4)))
    with pytest.raises(ValueError, match="batch_norm"):
        chain_layers(batch_norm="none")
    for function in (operators.singular_value_std, operators.log_spectral_complexity):
        with pytest.raises(ValueError, match="form"):
            function(chain_layers(), form="matrix")
    with pytest.raises(ValueError, match="layers is empty"):
        operators.log_lipschitz_bound([])
