"""PyTorch modules as batch functions, against PyTorch's own derivatives."""

import functools
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import opnorm
from opnorm import attacks, operators

torch = pytest.importorskip("torch")
nn = torch.nn
# More threads would wait for each other on the cores of other tests.
torch.set_num_threads(1)
SHAPE, CLASSES = (4, 5, 6, 3), 4


class Swish(torch.autograd.Function):
    """A function as users write them: it has a reverse mode and no forward mode."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * torch.sigmoid(x)

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        slope = torch.sigmoid(x)
        return gradient * slope * (1 + x * (1 - slope))


class Function(nn.Module):
    def __init__(self, fun):
        super().__init__()
        self.fun = fun

    def forward(self, x):
        return self.fun(x)


def network(activation, dtype=torch.float64):
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(3, 4, 3, 2, 1),
        nn.BatchNorm2d(4),
        activation,
        nn.Flatten(),
        nn.Linear(36, CLASSES),
    )
    module[1].running_mean.uniform_(-0.5, 0.5)
    module[1].running_var.uniform_(0.5, 1.5)
    return module.to(dtype).eval()


NETWORKS = {
    "smooth": nn.Tanh(),
    "reverse mode alone": Function(Swish.apply),
    "in place": nn.ReLU(inplace=True),
}


def image(seed=0, dtype=np.float64):
    return np.random.default_rng(seed).uniform(0, 1, SHAPE).astype(dtype)


def one(module, row):
    """The outputs of a row (H, W, C), as PyTorch users compute them."""
    return module(row.permute(2, 0, 1)[None])[0]


def rows(fun, x):
    """``fun`` of each row, by PyTorch."""
    return np.stack([fun(torch.tensor(row)).detach().numpy() for row in x])


def jacobians(module, x):
    derivative = torch.autograd.functional.jacobian
    return rows(lambda z: derivative(lambda a: one(module, a), z), x)


def gradients(module, x, weights):
    """The gradient of the weighted sum of log-sum-exps of the outputs."""
    images = torch.tensor(x, requires_grad=True)
    sums = torch.logsumexp(module(images.permute(0, 3, 1, 2)), dim=1)
    return torch.autograd.grad(sums @ torch.tensor(weights), images)[0].numpy()


@functools.cache
def derivatives(name):
    """All derivatives through JAX, in one program."""
    f = opnorm.torch.from_torch(network(NETWORKS[name]))

    @jax.jit
    def compute(x, v, u):
        out, push = jax.linearize(f, x)
        (pulled,) = jax.linear_transpose(push, x)(u)
        gradient = jax.grad(lambda z: jnp.vdot(jax.nn.logsumexp(f(z), axis=1), u[:, 0]))
        basis = jnp.broadcast_to(jnp.eye(CLASSES)[:, None], (CLASSES, *out.shape))
        backward = jax.vmap(jax.vjp(f, x)[1])(basis)[0]
        return {
            "value": out,
            "jvp": jax.jvp(f, (x,), (v,))[1],
            "push": push(v),
            "vjp": pulled,
            "jacobian": jnp.swapaxes(backward, 0, 1),
            "hessian forward": jax.jvp(gradient, (x,), (v,))[1],
            "hessian reverse": jax.grad(lambda z: jnp.vdot(gradient(z), v))(x),
            "second": jax.jvp(lambda z: jax.jvp(f, (z,), (v,))[1], (x,), (v,))[1],
            "pulled second": jax.grad(lambda z: jnp.vdot(jax.jvp(f, (z,), (v,))[1], u))(
                x
            ),
        }

    return compute


@pytest.mark.parametrize("name", NETWORKS)
def test_values_and_derivatives_are_pytorchs(name):
    module = network(NETWORKS[name])
    x, v = image(), image(1) - 0.5
    u = np.random.default_rng(2).normal(size=(len(x), CLASSES))
    with jax.enable_x64(True):
        found = jax.device_get(derivatives(name)(x, v, u))
    # The oracle is PyTorch's reverse mode of one row after another, and differences of
    # it for the second derivatives.
    jacobian = jacobians(module, x)
    step = 1e-5
    along = (jacobians(module, x + step * v) - jacobians(module, x - step * v)) / (
        2 * step
    )
    curved = (
        gradients(module, x + step * v, u[:, 0])
        - gradients(module, x - step * v, u[:, 0])
    ) / (2 * step)
    pushed = np.einsum("bkhwc,bhwc->bk", jacobian, v)
    expected = {
        "value": rows(lambda z: one(module, z), x),
        "jvp": pushed,
        "push": pushed,
        "vjp": np.einsum("bkhwc,bk->bhwc", jacobian, u),
        "jacobian": jacobian,
        "hessian forward": curved,
        "hessian reverse": curved,
        "second": np.einsum("bkhwc,bhwc->bk", along, v),
        "pulled second": np.einsum("bkhwc,bk->bhwc", along, u),
    }
    chex.assert_trees_all_close(found, expected, rtol=1e-7, atol=1e-9)


def test_norms_and_attacks_of_a_module():
    module = network(NETWORKS["in place"], torch.float32)
    f = opnorm.torch.from_torch(module)
    x = image(dtype=np.float32)
    labels = np.asarray(f(x)).argmax(1)
    jacobian = np.asarray(operators.dense_jacobian(f, x)).reshape(len(x), CLASSES, -1)
    sigma = np.linalg.norm(np.float64(jacobian), 2, axis=(1, 2))
    for method in ("dense", "golub_kahan"):
        found = operators.jacobian_norm(
            f, x, method=method, num_steps=CLASSES, key=jax.random.key(0)
        )
        np.testing.assert_allclose(found.value, sigma, rtol=1e-4)
    # The gap of the runner-up over the norm of its gradient is a distance, where the
    # network is linear up to there; a little more fools every example.
    attacked = attacks.pga(p=2, epsilon=0.6, num_steps=10)(
        f, x, labels, jax.random.key(0)
    )
    distance = np.linalg.norm((np.asarray(attacked) - x).reshape(len(x), -1), axis=1)
    assert np.all(distance <= 0.6 * (1 + 1e-5))
    loss = torch.nn.functional.cross_entropy
    turned = [
        torch.tensor(np.moveaxis(np.asarray(images), 3, 1)) for images in (x, attacked)
    ]
    before, after = (
        loss(module(t), torch.tensor(labels), reduction="none").detach().numpy()
        for t in turned
    )
    assert np.all(after > before)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float32])
def test_the_dtype_of_the_module_does_not_matter(dtype):
    module = network(NETWORKS["smooth"], dtype)
    f = opnorm.torch.from_torch(module)
    for given in (np.float32, jnp.bfloat16):
        x = image().astype(given)
        out, pull = jax.vjp(f, x)
        (gradient,) = pull(jnp.ones_like(out))
        assert out.dtype == jnp.float32
        assert gradient.dtype == given
        expected = rows(
            lambda z: one(module, z.to(dtype)).float(), x.astype(np.float32)
        )
        np.testing.assert_allclose(out, expected, atol=1e-6)


def test_batches_that_are_no_images_and_images_in_the_layout_of_the_module():
    torch.manual_seed(0)
    table = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).eval()
    x = image()[:, 0, :, 0].astype(np.float32)
    expected = table(torch.tensor(x)).detach().numpy()
    np.testing.assert_allclose(opnorm.torch.from_torch(table)(x), expected, rtol=1e-6)

    module = network(NETWORKS["smooth"], torch.float32)
    x = image(dtype=np.float32)
    turned = np.moveaxis(x, 3, 1)
    f, as_given = (
        opnorm.torch.from_torch(module, channels_first=first) for first in (True, False)
    )
    np.testing.assert_array_equal(f(x), as_given(turned))


def test_weights_may_change_between_calls():
    module = nn.Linear(3, 2, bias=False).eval()
    f = opnorm.torch.from_torch(module)
    x = np.ones((1, 3), np.float32)
    for weight in (1.0, 2.0):
        with torch.no_grad():
            module.weight.fill_(weight)
        norm = operators.jacobian_norm(f, x).value
        np.testing.assert_allclose(norm, weight * math.sqrt(6), rtol=1e-6)


def test_modules_that_are_no_batch_functions_are_refused():
    module = network(NETWORKS["smooth"])
    cases = [
        (lambda x: x, "module is a function; it must be a torch.nn.Module"),
        (nn.Linear(2, 2), r"in training mode; call module.eval\(\) first"),
        (
            nn.Sequential(module, nn.Dropout()),
            r"its part '1' is in training mode|it is in training mode",
        ),
        (nn.BatchNorm1d(3, track_running_stats=False).eval(), "without running stat"),
    ]
    for given, message in cases:
        with pytest.raises(ValueError, match=message):
            opnorm.torch.from_torch(given)


def test_bad_batches_and_outputs_are_named():
    module = network(NETWORKS["smooth"], torch.float32)
    x = image(dtype=np.float32)
    f = opnorm.torch.from_torch(module)
    with pytest.raises(ValueError, match=r"fails on x of shape \(B, 5, 3, 3\), which"):
        f(x[:, :, :3])
    with pytest.raises(ValueError, match="dtype int32; it must be a floating batch"):
        f(x.astype(np.int32))
    outputs = {
        "returns a tuple": lambda z: (z, z),
        r"dtype torch.int64 for 2 examples": lambda z: z.argmax(1),
        r"shape \(6, 3\) and": lambda z: z[0],
    }
    for message, fun in outputs.items():
        with pytest.raises(ValueError, match=message):
            opnorm.torch.from_torch(Function(fun).eval(), channels_first=False)(x[0])
    f(x)
    module.train()
    with pytest.raises(ValueError, match="training mode"):
        f(x)


def test_derivatives_that_do_not_exist_are_named():
    x = image(dtype=np.float32)[0, 0]
    cut = opnorm.torch.from_torch(Function(lambda z: z.detach() ** 2).eval())
    np.testing.assert_allclose(cut(x), x**2)
    with pytest.raises(Exception, match="without a gradient"):
        jax.block_until_ready(jax.grad(lambda z: cut(z).sum())(x))
    f = opnorm.torch.from_torch(Function(lambda z: z**4).eval())
    with pytest.raises(ValueError, match="third derivative"):
        jax.jacfwd(jax.hessian(lambda z: f(z).sum()))(x)
