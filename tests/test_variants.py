"""Attacks, operators and models without jit, under it, on a device and under pmap."""

import chex
import jax
import jax.numpy as jnp
import numpy as np

import opnorm
from opnorm import attacks, models, operators

RANDOM = np.random.default_rng(0)
WEIGHTS = RANDOM.normal(size=(6, 3)).astype(np.float32)
X = RANDOM.uniform(0.4, 0.6, (4, 6)).astype(np.float32)


def affine(x):
    return jnp.matmul(x, jnp.asarray(WEIGHTS), precision="highest")


class TestVariants(chex.TestCase):
    @chex.all_variants
    def test_an_attack_goes_along_the_gradient(self):
        attack = attacks.fgm(p=2.0, epsilon=0.1)
        labels = np.argmax(X @ WEIGHTS, axis=1)
        x_adv = self.variant(lambda x: attack(affine, x, labels))(X)
        exact = X.astype(np.float64) @ WEIGHTS
        probabilities = np.exp(exact) / np.sum(np.exp(exact), axis=1, keepdims=True)
        gradient = (probabilities - np.eye(3)[labels]) @ WEIGHTS.T
        step = 0.1 * gradient / np.linalg.norm(gradient, axis=1, keepdims=True)
        chex.assert_trees_all_close(x_adv, X + step, atol=1e-5)

    @chex.all_variants
    def test_the_norm_of_a_jacobian_is_that_of_its_matrix(self):
        def norm(x):
            return operators.jacobian_norm(affine, x, method="dense")

        found = self.variant(norm)(X)
        chex.assert_shape(found.right, X.shape)
        expected = np.full(4, np.linalg.norm(WEIGHTS.astype(np.float64), 2))
        chex.assert_trees_all_close(found.value, expected, rtol=1e-5)

    @chex.all_variants
    def test_a_network_computes_what_its_layers_say(self):
        images = RANDOM.uniform(size=(2, 4, 4, 3)).astype(np.float32)
        module = models.create("mlp1", width=5)
        network = opnorm.network(module, module.init(jax.random.key(0), images))
        logits = self.variant(lambda x: network(x))(images)
        hidden, last = network.params["dense1"], network.params["logits"]
        flat = (images.reshape(2, -1) - 0.5) / 0.5
        alive = np.maximum(flat @ hidden["kernel"] + hidden["bias"], 0)
        expected = alive @ last["kernel"] + last["bias"]
        chex.assert_shape(logits, (2, 10))
        chex.assert_trees_all_close(logits, np.asarray(expected), atol=1e-5)
