"""What a step is on an accelerator, read from the program that JAX hands to XLA."""

import collections
import re

import jax
import jax.numpy as jnp
import pytest

from opnorm import training
from opnorm.training import methods, modes, optimizers


@pytest.mark.parametrize(("model", "convolutions"), [("cnn7", 7), ("wrn28", 27)])
def test_every_product_is_in_half_precision_and_none_is_wasted(
    model, convolutions, monkeypatch
):
    # As on an accelerator, where convolutions need no rewriting.
    monkeypatch.setenv("OPNORM_LOOPS", "plain")
    config = training.Config(
        model=model,
        width=1,
        method="adversarial_only",
        num_steps=10,
        compute_dtype="bfloat16",
        batch_size=4,
    )
    module = training.build_model(config, 10)
    bound = methods.create(config, modes.create(module))
    optimizer = optimizers.create(config, training.make_plan(config, 40))
    shape = (32, 32, 3)
    params, batch_stats = jax.eval_shape(
        lambda key: modes.init(module, key, shape), jax.random.key(0)
    )
    state = jax.eval_shape(
        lambda params, batch_stats: training.init_state(
            params,
            batch_stats,
            bound,
            optimizer,
            jax.random.key(0),
            num_examples=4,
            num_classes=10,
        ),
        params,
        batch_stats,
    )
    step = training.make_step(bound, optimizer, training.data_mesh(jax.devices()[:1]))
    labels = jax.ShapeDtypeStruct((4,), jnp.int32)
    images = jax.ShapeDtypeStruct((4, *shape), jnp.uint8)
    traced = step.trace(state, images, labels, labels)
    program = traced.lower(lowering_platforms=("cuda",)).as_text()
    found = collections.Counter()
    for line in program.splitlines():
        operation = re.search(r"stablehlo\.(convolution|dot_general)\b", line)
        if operation:
            types = re.findall(r"tensor<(?:\d+x)*(\w+)>", line.rsplit(" : ", 1)[1])
            assert types == ["bf16"] * 3, line
            found[operation[1]] += 1
    # Forward, gradients of kernels, and of inputs but for the pictures. The attack is a
    # loop over one step: forward and the gradients of inputs, the pictures' among them.
    assert found["convolution"] == 3 * convolutions - 1 + 2 * convolutions
    assert found["dot_general"] == 3 + 2
    assert "stablehlo.while" in program
