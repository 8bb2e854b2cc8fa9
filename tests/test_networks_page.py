"""The examples of docs/networks.md run, one for each kind of network."""

import re
from pathlib import Path

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from opnorm import attacks

PAGE = (Path(__file__).parent.parent / "docs" / "networks.md").read_text()
SHAPE, WIDTH, CLASSES = (2, 2, 1), 6, 3
# Tests of the attacks compile these ones.
CHEAP = {
    "attacks.auto_attack(p=2, epsilon=epsilon)": "attacks.fgm(p=2, epsilon=epsilon)",
    "[attacks.deepfool(), attacks.fast_minimum_norm(p=2)]": "[attacks.deepfool()]",
}


def weights():
    rng = np.random.default_rng(0)
    first = rng.normal(size=(4, WIDTH)).astype(np.float32)
    return first, rng.normal(size=(WIDTH, CLASSES)).astype(np.float32)


def linen():
    module = nn.Sequential(
        [
            lambda x: x.reshape(len(x), -1),
            nn.Dense(WIDTH, use_bias=False),
            nn.relu,
            nn.Dense(CLASSES, use_bias=False),
        ]
    )
    kernels = zip(("layers_1", "layers_3"), weights(), strict=True)
    return {
        "module": module,
        "variables": {"params": {name: {"kernel": w} for name, w in kernels}},
    }


class Module(nnx.Module):
    def __init__(self):
        rngs = nnx.Rngs(0)
        self.first = nnx.Linear(4, WIDTH, use_bias=False, rngs=rngs)
        self.last = nnx.Linear(WIDTH, CLASSES, use_bias=False, rngs=rngs)
        self.first.kernel[...], self.last.kernel[...] = weights()

    def __call__(self, x):
        return self.last(nnx.relu(self.first(x.reshape(len(x), -1))))


def equinox():
    eqx = pytest.importorskip("equinox")

    def linear(w):
        key, (inputs, outputs) = jax.random.key(0), w.shape
        layer = eqx.nn.Linear(inputs, outputs, use_bias=False, key=key)
        return eqx.tree_at(lambda layer: layer.weight, layer, jnp.asarray(w.T))

    first, last = map(linear, weights())
    model = eqx.nn.Sequential(
        [
            eqx.nn.Lambda(jnp.ravel),
            first,
            eqx.nn.Lambda(jax.nn.relu),
            last,
        ]
    )
    return {"model": model}


def plain():
    def apply(params, x):
        return jax.nn.relu(x.reshape(len(x), -1) @ params[0]) @ params[1]

    return {"apply": apply, "params": weights()}


def haiku():
    hk = pytest.importorskip("haiku")

    def forward(x):
        x = hk.Flatten()(x)
        x = jax.nn.relu(hk.Linear(WIDTH, with_bias=False, name="first")(x))
        return hk.Linear(CLASSES, with_bias=False, name="last")(x)

    first, last = weights()
    params = {"first": {"w": first}, "last": {"w": last}}
    return {"transformed": hk.transform(forward), "params": params}


NETWORKS = {
    "Flax Linen": linen,
    "Flax NNX": lambda: {"module": Module()},
    "Equinox": equinox,
    "A function on a tree": plain,
    "Haiku": haiku,
}


def example(title):
    block = rf"^## {re.escape(title)}\n.*?```python\n(.*?)```"
    return re.search(block, PAGE, re.S | re.M)[1]


@pytest.mark.parametrize("title", NETWORKS)
def test_an_example_runs(title):
    text = example(title)
    assert len([line for line in text.splitlines() if line]) <= 15
    for old, new in CHEAP.items():
        assert eval(old, {"attacks": attacks, "epsilon": 0.1})
        assert old in text
        text = text.replace(old, new)
    rng = np.random.default_rng(1)
    x = rng.uniform(size=(4, *SHAPE)).astype(np.float32)
    space = {"x": x, "y": np.array([0, 1, 2, 0]), **NETWORKS[title]()}
    exec(compile(text, title, "exec"), space)

    first, last = weights()
    np.testing.assert_allclose(
        space["norms"].value,
        [np.linalg.norm(w, 2) for w in (first, last)],
        rtol=1e-5,
    )
    product = np.log(np.linalg.norm(first, 2) * np.linalg.norm(last, 2))
    np.testing.assert_allclose(space["bound"], product, rtol=1e-4)
    active = x.reshape(4, -1) @ first > 0
    jacobians = np.einsum("ij,bj,jk->bki", first, active, last)
    exact = np.linalg.norm(jacobians, 2, axis=(1, 2))
    np.testing.assert_allclose(space["sigma"], exact, rtol=1e-5)
    logits = np.maximum(x.reshape(4, -1) @ first, 0) @ last
    assert space["clean"].mean == np.mean(logits.argmax(1) == space["y"])
    assert space["hessian"].size == first.size + last.size
    assert all(point.mean <= space["clean"].mean for point in space["curve"])
    chex.assert_shape(space["nearest"].distance, (4,))


def test_every_example_is_run():
    sections = re.split(r"^## ", PAGE, flags=re.M)[1:]
    with_layers = {
        s.partition("\n")[0] for s in sections if "find_layers(f, x)\nnorms" in s
    }
    assert with_layers == set(NETWORKS)
