"""The step of an accelerator, read from the program that JAX hands to XLA."""

import collections
import re

import jax
import jax.numpy as jnp
import pytest

from opnorm import training


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
    shape = (32, 32, 3)
    objective = training.make_objective(config, 10, shape)
    mesh = training.data_mesh(jax.devices()[:1])
    program = training.Program(objective, training.make_plan(config, 40), mesh)
    # Without augmentation, whose products are in float32.
    step = training.make_step(objective.method, program.optimizer, mesh)
    state = jax.eval_shape(lambda: program.initial_state(0))
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
    # Forward, gradients of kernels, and of inputs but for the images. The attack is a
    # loop over one step: forward and the gradients of inputs, the images' among them.
    assert found["convolution"] == 3 * convolutions - 1 + 2 * convolutions
    assert found["dot_general"] == 3 + 2
    assert "stablehlo.while" in program
