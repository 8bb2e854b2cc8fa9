"""Loops with rewritten convolutions compute the same as plain loops."""

import gc
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from opnorm import linalg

LAYOUTS = [("NHWC", "HWIO", "NHWC"), ("NCHW", "OIHW", "NCHW"), ("CHWN", "IHWO", "NHWC")]


def conv(x, kernel, layout=LAYOUTS[0], stride=1, padding="SAME", groups=1, dilation=1):
    return lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        padding,
        rhs_dilation=(dilation, dilation),
        dimension_numbers=layout,
        feature_group_count=groups,
    )


def shaped(spec, sizes):
    return tuple(sizes[letter] for letter in spec)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("dilation", [1, 2])
def test_values_and_both_gradients_are_kept(layout, stride, groups, dilation):
    padding = "VALID" if dilation == 1 else "SAME"
    keys = jax.random.split(jax.random.key(0), 2)
    x = jax.random.normal(keys[0], shaped(layout[0], {"N": 2, "C": 4, "H": 7, "W": 6}))
    kernel = jax.random.normal(
        keys[1], shaped(layout[1], {"H": 3, "W": 2, "I": 4 // groups, "O": 6})
    )

    def loss(x, kernel):
        out = conv(x, kernel, layout, stride, padding, groups, dilation)
        return jnp.sum(jnp.sin(out))

    gradients = jax.value_and_grad(loss, argnums=(0, 1))
    rewritten = linalg.canonicalize_convolutions(gradients)
    for a, b in zip(
        jax.tree.leaves(gradients(x, kernel)),
        jax.tree.leaves(jax.jit(rewritten)(x, kernel)),
        strict=True,
    ):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize(
    ("size", "channels", "stride", "padding"),
    [
        ((2, 2), (4, 5), 1, ((2, 2), (2, 2))),
        ((3, 2), (4, 5), 1, ((4, 1), (3, 5))),
        ((5, 4), (9, 3), 1, "SAME"),
        ((5, 4), (9, 3), 1, ((-1, 2), (1, -1))),
        ((1, 1), (3, 9), 1, ((5, 5), (5, 5))),
    ],
)
def test_products_and_shifts_are_convolutions(size, channels, stride, padding):
    keys = jax.random.split(jax.random.key(0), 2)
    x = jax.random.normal(keys[0], (3, *size, channels[0]))
    kernel = jax.random.normal(keys[1], (3, 2, *channels))

    def f(x, kernel):
        return conv(x, kernel, LAYOUTS[0], stride, padding)

    rewritten = linalg.canonicalize_convolutions(f)
    text = str(jax.make_jaxpr(rewritten)(x, kernel))
    assert "dot_general" in text
    assert "conv_general" not in text
    np.testing.assert_allclose(rewritten(x, kernel), f(x, kernel), rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("size", [(3, 3), (4, 2), (1, 7)])
@pytest.mark.parametrize("strides", [(2, 2), (1, 3)])
@pytest.mark.parametrize("padding", [((1, 1), (0, 0)), ((0, 3), (2, 1))])
def test_gradients_of_strided_convolutions_have_no_dilation(size, strides, padding):
    keys = jax.random.split(jax.random.key(0), 2)
    shape = (2, 12, 11, 4)
    kernel = jax.random.normal(keys[0], (*size, 4, 5))

    def f(x):
        return lax.conv_general_dilated(
            x, kernel, strides, padding, dimension_numbers=LAYOUTS[0]
        )

    def gradient(cotangents):
        return jax.linear_transpose(f, jax.ShapeDtypeStruct(shape, jnp.float32))(
            cotangents
        )[0]

    out = jax.eval_shape(f, jax.ShapeDtypeStruct(shape, jnp.float32))
    cotangents = jax.random.normal(keys[1], out.shape)
    rewritten = linalg.canonicalize_convolutions(gradient)
    text = str(jax.make_jaxpr(rewritten)(cotangents))
    assert text.count("lhs_dilation=") == text.count("lhs_dilation=(1, 1)")
    found = jax.jit(rewritten)(cotangents)
    np.testing.assert_allclose(found, gradient(cotangents), rtol=2e-5, atol=2e-5)


def kernel_gradient(x, cotangents, size, padding):
    """The gradient by its definition, in float64: one product for each tap."""
    padded = np.pad(np.float64(x), ((0, 0), *padding, (0, 0)))
    rows, columns = cotangents.shape[1:3]
    gradient = np.zeros((*size, x.shape[-1], cotangents.shape[-1]))
    for i, j in np.ndindex(*size):
        gradient[i, j] = np.einsum(
            "byxc,byxd->cd", padded[:, i : i + rows, j : j + columns], cotangents
        )
    return gradient


@pytest.mark.parametrize(
    ("size", "padding"),
    [
        ((3, 3), ((1, 1), (1, 1))),
        ((3, 2), ((0, 0), (0, 0))),
        ((2, 3), ((2, 0), (0, 3))),
        ((1, 1), ((0, 0), (0, 0))),
        ((5, 4), ((2, 2), (3, 3))),
        ((4, 4), ((0, 1), (1, 0))),
    ],
)
@pytest.mark.parametrize("channels", [(8, 9), (7, 9)])
def test_gradients_of_kernels_are_one_product(size, padding, channels):
    keys = jax.random.split(jax.random.key(0), 2)
    x = jax.random.normal(keys[0], (2, 9, 8, channels[0]))
    kernel = jnp.zeros((*size, *channels))

    def f(kernel):
        return conv(x, kernel, padding=padding)

    shape = jax.eval_shape(f, kernel).shape
    cotangents = jax.random.normal(keys[1], shape)
    rewritten = linalg.canonicalize_convolutions(lambda g: jax.vjp(f, kernel)[1](g)[0])
    # Few channels keep the convolution.
    products = str(jax.make_jaxpr(rewritten)(cotangents)).count("dot_general")
    assert products == (min(channels) >= 8)
    np.testing.assert_allclose(
        jax.jit(rewritten)(cotangents),
        kernel_gradient(x, cotangents, size, padding),
        rtol=2e-5,
        atol=2e-5,
    )


def ascend(x, kernel, steps=3):
    def loss(x):
        return jnp.sum(jax.nn.relu(conv(jnp.tanh(conv(x, kernel)), kernel)) ** 2)

    return linalg.fori_loop(steps, lambda _, x: x + 0.01 * jax.grad(loss)(x), x)


def inputs():
    keys = jax.random.split(jax.random.key(1), 2)
    x = jax.random.normal(keys[0], (8, 6, 6, 3))
    return x, 0.3 * jax.random.normal(keys[1], (3, 3, 3, 3))


@pytest.mark.parametrize("mode", ["rewrite", "unroll"])
def test_every_mode_computes_the_plain_loop(mode, monkeypatch):
    x, kernel = inputs()
    monkeypatch.setenv("OPNORM_LOOPS", "plain")
    expected = ascend(x, kernel)
    monkeypatch.setenv("OPNORM_LOOPS", mode)
    np.testing.assert_allclose(jax.jit(ascend)(x, kernel), expected, rtol=1e-4)
    assert ascend(x, kernel, steps=0) is x


def test_an_unknown_mode_is_refused(monkeypatch):
    monkeypatch.setenv("OPNORM_LOOPS", "fast")
    with pytest.raises(ValueError, match=r"OPNORM_LOOPS is 'fast'.*rewrite"):
        ascend(*inputs())


def test_loops_work_under_vmap_pmap_and_shard_map():
    x, kernel = inputs()
    expected = ascend(x, kernel)
    mapped = jax.vmap(lambda x: ascend(x[None], kernel)[0])(x)
    np.testing.assert_allclose(mapped, expected, rtol=1e-4)
    devices = jax.device_count()
    split = x.reshape(devices, -1, *x.shape[1:])
    parallel = jax.pmap(ascend, in_axes=(0, None))(split, kernel)
    np.testing.assert_allclose(parallel.reshape(x.shape), expected, rtol=1e-4)
    mesh = jax.make_mesh(
        (devices,), ("data",), axis_types=(jax.sharding.AxisType.Auto,)
    )
    spec = jax.P("data")
    sharded = jax.shard_map(ascend, mesh=mesh, in_specs=(spec, jax.P()), out_specs=spec)
    np.testing.assert_allclose(jax.jit(sharded)(x, kernel), expected, rtol=1e-4)


def test_while_loops_are_rewritten_too():
    x, kernel = inputs()

    def body(carry):
        i, x = carry
        return i + 1, ascend(x, kernel, steps=1)

    _, found = linalg.while_loop(lambda c: c[0] < 3, body, (0, x))
    np.testing.assert_allclose(found, ascend(x, kernel), rtol=1e-4)


@pytest.mark.parametrize(
    "of",
    [
        lambda f, x: linalg.detach(f, x)(x),
        lambda f, x: linalg.canonicalize_convolutions(f)(x),
    ],
)
def test_a_function_that_closes_over_other_arrays_is_traced_again(of):
    x, kernel = inputs()
    closed_over = {"kernel": kernel}

    def f(x):
        return conv(x, closed_over["kernel"])

    before = of(f, x)
    closed_over["kernel"] = 2 * kernel
    np.testing.assert_allclose(of(f, x), 2 * before, rtol=1e-4)


def test_what_was_detached_is_not_kept_alive():
    x, kernel = inputs()
    closed_over = [2 * kernel]
    alive = weakref.ref(closed_over[0])
    linalg.detach(lambda x: conv(x, closed_over[0]), x)(x)
    closed_over.clear()
    gc.collect()
    assert alive() is None


def test_detached_functions_pass_no_gradient_to_what_they_close_over():
    x, kernel = inputs()

    def loss(kernel, detached):
        def f(x):
            return conv(x, kernel)

        g = linalg.detach(f, x) if detached else f
        _, z = linalg.while_loop(
            lambda c: c[0] < 2, lambda c: (c[0] + 1, c[1] + g(c[1])), (0, x)
        )
        return jnp.sum(z) + jnp.sum(g(x) ** 2)

    np.testing.assert_array_equal(jax.grad(loss)(kernel, True), 0)
    with pytest.raises(ValueError, match="while_loop"):
        jax.grad(loss)(kernel, False)

    def through_input(x):
        return jnp.sum(linalg.detach(lambda z: conv(z, kernel), x)(x) ** 2)

    expected = jax.grad(lambda x: jnp.sum(conv(x, kernel) ** 2))(x)
    np.testing.assert_allclose(jax.grad(through_input)(x), expected, rtol=1e-5)
