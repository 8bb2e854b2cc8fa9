"""oneDNN convolves where it is known to work, and gives XLA's values and derivatives.

The tests of values need a process with one device: ``OPNORM_TEST_FLAGS=onednn``.
"""

import functools
import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import jaxlib.version
import numpy as np
import pytest
from jax import export, lax

from opnorm import linalg
from opnorm.linalg import onednn
from tests.support import compiler

ALONE = compiler.MODE == "onednn"
alone = pytest.mark.skipif(not ALONE, reason="runs in a process of its own")
HERE = (
    sys.platform == "linux"
    and platform.machine() == "x86_64"
    and {jax.__version__, jaxlib.version.__version__} <= set(onednn.RELEASES)
)
SAME = ((1, 1), (1, 1))
PLAIN = onednn.Window((1, 1), SAME, (1, 1))
ODD = onednn.Window((2, 1), ((0, 2), (1, 1)), (1, 2), groups=2)


def arrays(images=(4, 16, 16, 4), kernel=(3, 3, 4, 6)):
    rng = np.random.default_rng(0)
    return (
        rng.standard_normal(images, np.float32),
        0.2 * rng.standard_normal(kernel, np.float32),
    )


def supports(images, kernel, window=PLAIN, dtype=np.float32):
    shapes = [jax.ShapeDtypeStruct(shape, dtype) for shape in (images, kernel)]
    return onednn.supports(*shapes, window)


@pytest.mark.skipif(ALONE or not HERE, reason="oneDNN is not known to work here")
def test_tests_of_values_pass_in_a_process_of_their_own(tmp_path):
    settings = {
        "OPNORM_TEST_FLAGS": "onednn",
        "OPNORM_ONEDNN": "auto",
        "XDG_CACHE_HOME": str(tmp_path),
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "programs"),
    }
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, "-k", "alone", "-rs", __file__],
        cwd=compiler.ROOT,
        env=os.environ | settings,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "skipped" not in done.stdout
    # The probe of that process found the call to work, and the answer was kept.
    (answer,) = tmp_path.glob("opnorm/onednn-*.json")
    assert json.loads(answer.read_text()) == {"works": True}
    # JAX stored programs of that process, but none that holds the call.
    stored = [path.name for path in (tmp_path / "programs").iterdir()]
    assert any(name.startswith("jit_stored") for name in stored)
    assert not any(name.startswith("jit_held") for name in stored)


@alone
@pytest.mark.filterwarnings("error")
def test_alone_programs_are_stored_if_they_hold_no_call():
    x, kernel = arrays()

    @jax.jit
    def held(x):
        return lax.fori_loop(
            0,
            2,
            lambda _, y: y + onednn.convolve(x, kernel, PLAIN),
            jnp.zeros((4, 16, 16, 6)),
        )

    @jax.jit
    def stored(x):
        return onednn._by_xla(x, kernel, window=PLAIN)

    np.testing.assert_allclose(held(x), 2 * stored(x), rtol=1e-4, atol=1e-5)


@alone
def test_alone_the_probe_notices_a_wrong_value(monkeypatch):
    monkeypatch.setattr(onednn, "_WINDOWS", onednn._WINDOWS[2:3])
    onednn.probe()
    right = onednn._reference
    monkeypatch.setattr(onednn, "_reference", lambda *args: 1.01 * right(*args))
    with pytest.raises(RuntimeError, match="oneDNN errs by"):
        onednn.probe()


@alone
@pytest.mark.parametrize("window", [PLAIN, ODD])
def test_alone_values_and_derivatives_are_those_of_xla(window):
    x, kernel = arrays(kernel=(3, 2, 4 // window.groups, 6))
    u, v = arrays(kernel=kernel.shape)
    by_xla = functools.partial(onednn._by_xla, window=window)

    def derivatives(convolve, x, kernel):
        def loss(x, kernel):
            return jnp.sum(jnp.sin(convolve(x, kernel)))

        def slope(x, kernel):
            return jax.jvp(loss, (x, kernel), (u, v))[1]

        gradient = jax.grad(loss, argnums=(0, 1))
        forgetful = jax.checkpoint(lambda x: jnp.sum(convolve(jnp.sin(x), kernel) ** 2))
        scanned = lax.scan(
            lambda x, _: (x + 0.1 * jax.grad(loss)(x, kernel), None), x, None, length=2
        )
        return {
            "value": convolve(x, kernel),
            "gradient": gradient(x, kernel),
            "forward over reverse": jax.jvp(gradient, (x, kernel), (u, v)),
            "reverse over forward": jax.grad(slope, argnums=(0, 1))(x, kernel),
            "linear": jax.linearize(convolve, x, kernel)[1](u, v),
            "transpose": jax.linear_transpose(lambda x: convolve(x, kernel), x)(
                by_xla(x, kernel)
            ),
            "rematerialised": jax.grad(forgetful)(x),
            "scan": scanned[0],
            "vmap of images": jax.vmap(convolve, (1, None), 2)(
                jnp.stack([x, u], 1), kernel
            ),
            "vmap of kernels": jax.vmap(convolve, (None, 0))(x, jnp.stack([kernel, v])),
            "vmap of both": jax.vmap(convolve)(
                jnp.stack([x, u]), jnp.stack([kernel, v])
            ),
            "vmap of nothing": jax.vmap(convolve, (0, None))(
                jnp.zeros((0, *x.shape)), kernel
            ),
            "vmap of gradients": jax.vmap(gradient, (0, None))(
                jnp.stack([x, u]), kernel
            ),
        }

    @jax.jit
    def both(x, kernel):
        call = functools.partial(onednn.convolve, window=window)
        return derivatives(call, x, kernel), derivatives(by_xla, x, kernel)

    found, expected = both(x, kernel)
    chex.assert_trees_all_equal_shapes_and_dtypes(found, expected)
    for name, values in expected.items():
        # Sums of a thousand numbers are rounded in units of their largest results.
        largest = max(np.abs(v).max(initial=1) for v in jax.tree.leaves(values))
        chex.assert_trees_all_close(found[name], values, rtol=1e-5, atol=2e-6 * largest)
    # Without jit the call is a program of its own.
    eager = onednn.convolve(jnp.asarray(x), jnp.asarray(kernel), window)
    np.testing.assert_allclose(eager, expected["value"], rtol=1e-5, atol=1e-5)


@alone
def test_alone_images_that_are_not_finite_spoil_what_they_spoil_by_xla():
    x, kernel = arrays()
    images = np.stack([x] * 4)
    images[0, 1, 2, 3, 0] = np.nan
    images[1, 1, 0, 0, 1] = np.inf
    images[2, 1, 0, 0, 1], images[2, 1, 1, 1, 1] = np.inf, -np.inf
    images[3] *= 1e30
    call = jax.jit(lambda x: onednn.convolve(x, kernel, PLAIN))
    by_xla = jax.jit(lambda x: onednn._by_xla(x, kernel, window=PLAIN))
    for image in images:
        largest = np.max(np.abs(image), where=np.isfinite(image), initial=0)
        np.testing.assert_allclose(
            call(image), by_xla(image), rtol=1e-4, atol=1e-6 * largest
        )


@alone
def test_alone_convolutions_of_functions_and_loops_are_calls(monkeypatch):
    x, kernel = arrays(kernel=(3, 3, 4, 4))
    layout = ("NCHW", "OIHW", "NCHW")

    def conv(x, result=np.float32):
        return lax.conv_general_dilated(
            x,
            kernel.transpose(3, 2, 0, 1),
            (1, 1),
            "SAME",
            dimension_numbers=layout,
            preferred_element_type=result,
        )

    def ascend(x):
        def step(_, x):
            return x + 0.01 * jax.grad(lambda x: jnp.sum(jnp.tanh(conv(x)) ** 2))(x)

        return linalg.fori_loop(3, step, x)

    images = x.transpose(0, 3, 1, 2)
    found = jax.jit(lambda x: (conv(x), ascend(x), jax.vmap(ascend)(x[None])[0]))
    text = found.lower(images).as_text()
    assert text.count(onednn._TARGET) >= 2
    plain, climbed, mapped = found(images)
    right = onednn._reference(x, kernel, PLAIN).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(plain, right, rtol=1e-5, atol=1e-5)
    fast = linalg.fast_convolutions(conv)
    assert onednn._TARGET in jax.jit(fast).lower(images).as_text()
    np.testing.assert_allclose(fast(images), right, rtol=1e-5, atol=1e-5)
    with jax.enable_x64(True):
        precise = linalg.fast_convolutions(lambda x: conv(x, np.float64))
        assert onednn._TARGET not in jax.jit(precise).lower(images).as_text()

    monkeypatch.setenv("OPNORM_ONEDNN", "off")
    by_xla = jax.jit(lambda x: ascend(x))
    assert onednn._TARGET not in by_xla.lower(images).as_text()
    np.testing.assert_allclose(climbed, by_xla(images), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(mapped, climbed, rtol=1e-5, atol=1e-5)


@alone
def test_alone_exported_and_foreign_programs_have_the_convolution_of_xla():
    shapes = [jax.ShapeDtypeStruct(array.shape, array.dtype) for array in arrays()]
    program = jax.jit(functools.partial(onednn.convolve, window=PLAIN))
    assert onednn._TARGET in program.lower(*shapes).as_text()
    assert onednn._TARGET not in export.export(program)(*shapes).mlir_module()
    foreign = program.trace(*shapes).lower(lowering_platforms=("cuda",))
    assert onednn._TARGET not in foreign.as_text()


@alone
def test_alone_only_what_is_tried_and_fast_is_allowed(monkeypatch):
    images, kernel = (4, 16, 16, 4), (3, 3, 4, 6)
    assert onednn.uses_onednn()
    assert supports(images, kernel)
    assert supports(images, (3, 3, 2, 6), PLAIN._replace(groups=2))
    assert supports(images, (11, 11, 4, 6), PLAIN._replace(padding=((5, 5), (5, 5))))
    assert not supports(images, kernel, dtype=np.float64)
    assert not supports(images, kernel, dtype=jnp.bfloat16)
    assert not supports((0, 16, 16, 4), kernel)
    assert not supports((64, 16, 4), (3, 4, 6), onednn.Window((1,), SAME[:1], (1,)))
    deep = onednn.Window((1, 1, 1), (*SAME, (1, 1)), (1, 1, 1))
    assert not supports((4, 8, 8, 8, 4), (3, 3, 3, 4, 6), deep)
    assert not supports(images, kernel, PLAIN._replace(padding=((-1, 2), (1, 1))))
    assert not supports(images, kernel, PLAIN._replace(strides=(5, 1)))
    assert not supports(images, kernel, PLAIN._replace(dilation=(1, 5)))
    # A gradient of a kernel, few places, a product, numbers beyond 32 bits.
    assert not supports(images, (16, 16, 4, 64), PLAIN)
    assert not supports((2, 16, 16, 4), kernel)
    assert not supports((999, 1, 1, 4), kernel)
    assert not supports(images, (3, 3, 4, 1))
    assert not supports((2**15, 128, 128, 4), kernel)
    size = export.symbolic_shape("b")[0]
    assert not supports((size, 16, 16, 4), kernel)
    axis = jax.sharding.AxisType.Auto
    with jax.set_mesh(jax.make_mesh((1,), ("data",), axis_types=(axis,))):
        assert not supports(images, kernel)
    monkeypatch.setattr(jax, "device_count", lambda: 2)
    assert not supports(images, kernel)


def test_the_switch_turns_it_off(monkeypatch):
    monkeypatch.setattr(onednn, "_works_here", lambda: True)
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    for mode in (None, "auto"):
        if mode is None:
            monkeypatch.delenv("OPNORM_ONEDNN", raising=False)
        else:
            monkeypatch.setenv("OPNORM_ONEDNN", mode)
        assert onednn.uses_onednn() == (jax.default_backend() == "cpu")
    monkeypatch.setenv("OPNORM_ONEDNN", "off")
    assert not onednn.uses_onednn()
    monkeypatch.setenv("OPNORM_ONEDNN", "fast")
    with pytest.raises(ValueError, match=r"OPNORM_ONEDNN is 'fast'.*'off'"):
        onednn.uses_onednn()


@pytest.fixture
def asked(monkeypatch, tmp_path):
    """Answers of the next children, and how many there were."""
    answers, questions = [], []

    def ask():
        questions.append(1)
        return answers.pop(0)

    monkeypatch.setattr(onednn, "_ask_child", ask)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(
        onednn, "RELEASES", (jax.__version__, jaxlib.version.__version__)
    )
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def works(*next_answers):
        answers[:] = next_answers
        before = len(questions)
        return onednn._works_here.__wrapped__(), len(questions) - before

    return works


def test_an_answer_is_kept_for_its_machine(asked, monkeypatch):
    assert asked(None) == (False, 1)
    assert asked(True) == (True, 1)
    assert asked() == (True, 0)
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    assert asked(False) == (False, 1)
    assert asked() == (False, 0)
    file = onednn._answer_file()
    for foreign in ("", "{", "[]", '{"works": "yes"}', "\0\xff", "{}"):
        file.write_text(foreign)
        assert asked(True) == (True, 1)
        assert asked() == (True, 0)
    file.unlink()
    file.mkdir()
    assert asked(True) == (True, 1)
    assert [path.name for path in file.parent.glob("tmp*")] == []


def test_an_answer_that_cannot_be_kept_is_asked_for_again(asked, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert asked(True) == (True, 1)
    assert asked(False) == (False, 1)
    monkeypatch.delenv("XDG_CACHE_HOME")

    def no_home():
        raise RuntimeError

    monkeypatch.setattr(Path, "home", no_home)
    assert asked(True) == (True, 1)


def test_other_machines_and_releases_are_not_asked(asked, monkeypatch):
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    assert asked() == (False, 0)
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(sys, "platform", "darwin")
    assert asked() == (False, 0)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(onednn, "RELEASES", ("0.9.0",))
    assert asked() == (False, 0)


def test_the_end_of_a_child_is_read(monkeypatch, tmp_path):
    program = tmp_path / "python-of-the-test"

    def answer(script):
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
        return onednn._ask_child()

    monkeypatch.setattr(sys, "executable", str(program))
    monkeypatch.setenv("JAX_DEBUG_NANS", "1")
    settled = '[ "$JAX_PLATFORMS$JAX_DEBUG_NANS" = cpu ]'
    assert answer(f'{settled} && [ "$2" = "{onednn.__file__}" ]') is True
    assert answer("exit 3") is False
    assert answer("kill -ABRT $$") is False
    # Not the answer of the probe: an import fails, somebody ends the process.
    assert answer("exit 1") is None
    assert answer("kill -KILL $$") is None
    monkeypatch.setattr(onednn, "_CHILD_SECONDS", 0.2)
    assert answer("exec sleep 60") is False
    program.unlink()
    assert onednn._ask_child() is None


def test_only_an_interpreter_starts_a_child(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError

    monkeypatch.setattr(subprocess, "run", refuse)
    for executable in (None, "", "/opt/frozen/application"):
        monkeypatch.setattr(sys, "executable", executable)
        assert onednn._ask_child() is None
    monkeypatch.undo()
    monkeypatch.setattr(subprocess, "run", refuse)
    monkeypatch.setattr(onednn.multiprocessing, "parent_process", lambda: "a process")
    assert onednn._ask_child() is None
