"""Kernels read from programs, and the roofline that they are held against."""

import importlib.util
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.common import train_steps
from experiments.roofline import program, steps, tables

RESULTS = Path(__file__).parents[2] / "experiments" / "results" / "roofline"

# A loop of three steps: a convolution by cuDNN and its two gradients, with a fusion
# that reads one of its operands twice, and a matrix product by cuBLAS at the end.
_GPU = """\
HloModule jit_step, is_scheduled=true

%fused (p0: bf16[2,8,8,4], p1: f32[4]) -> bf16[2,8,8,4] {
  %p0 = bf16[2,8,8,4]{3,2,1,0} parameter(0)
  %p1 = f32[4]{0} parameter(1)
  ROOT %r = bf16[2,8,8,4]{3,2,1,0} add(%p0, %p0)
}

%body (state.1: (s32[], bf16[2,8,8,4])) -> (s32[], bf16[2,8,8,4]) {
  %state.1 = (s32[], bf16[2,8,8,4]{3,2,1,0}) parameter(0)
  %x = bf16[2,8,8,4]{3,2,1,0} get-tuple-element(%state.1), index=1
  %k = bf16[6,3,3,4]{3,2,1,0} constant({...})
  %forward.1 = (bf16[2,8,8,6]{3,2,1,0}, u8[0]{0}) custom-call(%x, %k), \
window={size=3x3 pad=1_1x1_1}, dim_labels=b01f_o01i->b01f, \
custom_call_target="__cudnn$convForward", \
metadata={op_name="jit(step)/conv" stack_frame_id=1}, backend_config={"a":{"b":0}}
  %y = bf16[2,8,8,6]{3,2,1,0} get-tuple-element(%forward.1), index=0
  %backward.1 = (bf16[2,8,8,4]{3,2,1,0}, u8[16]{0}) custom-call(%y, %k), \
window={size=3x3 pad=1_1x1_1}, dim_labels=b01f_o01i->b01f, \
custom_call_target="__cudnn$convBackwardInput"
  %filter.1 = (bf16[6,3,3,4]{3,2,1,0}, u8[0]{0}) custom-call(%x, %y), \
window={size=3x3 pad=1_1x1_1}, dim_labels=b01f_o01i->b01f, \
custom_call_target="__cudnn$convBackwardFilter"
  %z = bf16[2,8,8,4]{3,2,1,0} get-tuple-element(%backward.1), index=0
  %scale = f32[4]{0} constant({1,1,1,1})
  %loop_add_fusion.12 = bf16[2,8,8,4]{3,2,1,0} fusion(%z, %scale, %z), kind=kLoop, \
calls=%fused
  ROOT %t = (s32[], bf16[2,8,8,4]{3,2,1,0}) tuple(%i, %loop_add_fusion.12)
}

ENTRY %main (a: (s32[], bf16[2,8,8,4]), l: f32[5,7], r: f32[7,3]) -> f32[5,3] {
  %a = (s32[], bf16[2,8,8,4]{3,2,1,0}) parameter(0)
  %l = f32[5,7]{1,0} parameter(1)
  %r = f32[7,3]{1,0} parameter(2)
  %while.1 = (s32[], bf16[2,8,8,4]{3,2,1,0}) while(%a), condition=%test, body=%body, \
backend_config={"known_trip_count":{"n":"3"},"known_init_step":{"init":"0","step":"1"}}
  ROOT %gemm = (f32[5,3]{1,0}, s8[32]{0}) custom-call(%l, %r), \
custom_call_target="__cublas$gemm", backend_config={"gemm_backend_config":\
{"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"],\
"rhs_contracting_dimensions":["0"]}}}
}
"""


def test_a_program_for_a_gpu_is_its_kernels_as_often_as_they_run():
    kernels = {kernel.kind: kernel for kernel in program.read(_GPU)}
    # Each output of the convolution is 36 products and sums.
    arithmetic = 2 * (2 * 8 * 8 * 6) * (3 * 3 * 4)
    x, y, k = 2 * (2 * 8 * 8 * 4), 2 * (2 * 8 * 8 * 6), 2 * (6 * 3 * 3 * 4)
    expected = {
        "__cudnn$convForward": (3, arithmetic, x + k + y),
        # With its work space.
        "__cudnn$convBackwardInput": (3, arithmetic, x + k + y + 16),
        "__cudnn$convBackwardFilter": (3, arithmetic, x + k + y),
        "loop_add_fusion": (3, 0, 2 * x + 16),
        "__cublas$gemm": (1, 2 * 5 * 7 * 3, 4 * (35 + 21 + 15) + 32),
    }
    found = {kind: (one.runs, one.flops, one.bytes) for kind, one in kernels.items()}
    assert found == expected
    assert kernels["__cudnn$convForward"].source == "jit(step)/conv"


def test_the_arithmetic_of_a_compiled_network_is_that_of_its_layers():
    def network(x, kernel, grouped, weights):
        for each, groups in ((kernel, 1), (grouped, 4)):
            x = jax.lax.conv_general_dilated(
                x,
                each,
                (2, 1),
                "VALID",
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
                feature_group_count=groups,
            )
        return jnp.tanh(x).reshape(len(x), -1) @ weights

    def repeated(x, *layers):
        def body(_, total):
            return total + network(x + total.sum(), *layers)

        return jax.lax.fori_loop(0, 5, body, network(x, *layers))

    x = np.ones((6, 11, 9, 3), np.float32)
    layers = ((3, 3, 3, 8), (2, 3, 2, 12), (2 * 5 * 12, 10))
    arrays = [np.ones(shape, np.float32) for shape in layers]
    text = jax.jit(repeated).lower(x, *arrays).compile().as_text()
    kernels = program.read(text)
    per_pass = 2 * 6 * (5 * 7 * 8 * 27 + 2 * 5 * 12 * 12 + 120 * 10)
    assert sum(kernel.runs * kernel.flops for kernel in kernels) == 6 * per_pass


def test_a_kernel_takes_the_longer_of_its_two_times():
    kernel = program.Kernel("", "", "", runs=4, flops=12.0, bytes=6.0)
    assert kernel.seconds(rate=2.0, bandwidth=3.0) == 4 * 6.0
    assert kernel.seconds(rate=12.0, bandwidth=3.0) == 4 * 2.0


def test_a_loop_of_unknown_length_is_refused():
    unknown = _GPU.replace('"known_trip_count":{"n":"3"},', "")
    with pytest.raises(ValueError, match=r"while.1"):
        program.read(unknown)


def test_a_step_is_summed_up_by_its_kinds_of_kernels():
    kernels = [
        program.Kernel("a", "product", "", runs=2, flops=12.0, bytes=3.0),
        program.Kernel("b", "copy", "", runs=3, flops=0.0, bytes=30.0),
        program.Kernel("c", "product", "", runs=1, flops=6.0, bytes=0.0),
    ]
    found = steps.summary(kernels, rate=2.0, bandwidth=3.0)
    # The products take 2 x 6 + 3 seconds, the copies 3 x 10.
    assert (found["flops"], found["bytes"], found["seconds"]) == (30.0, 96.0, 45.0)
    assert found["fraction"] == pytest.approx(30 / 45 / 2)
    assert list(found["kinds"]) == ["copy", "product"]
    product = {"kernels": 3, "flops": 30.0, "bytes": 6.0, "seconds": 15.0}
    assert found["kinds"]["product"] == product


def test_a_train_step_is_compiled_for_a_device(monkeypatch):
    monkeypatch.setitem(train_steps.FULL, "cnn7", train_steps.Size(2, 4, 32, 10))
    (label, fields), *_ = train_steps.steps_of("cnn7", "float32").items()
    compiled = steps.compile_step(jax.devices()[0], "cnn7", label, "float32", 2, fields)
    # The program keeps at least the images that it is given.
    assert steps.memory(compiled) > 2 * 32 * 32 * 3
    assert "u8[2,32,32,3]" in compiled.as_text()


@pytest.mark.parametrize("name", ["float32", "bfloat16", "a100_resnet50"])
def test_committed_tables_are_made_of_committed_results(name):
    results = json.loads((RESULTS / name / "roofline.json").read_text())
    table = (RESULTS / name / "table.md").read_text()
    assert f"{tables.text(results, largest=8)}\n" == table


def test_a_step_that_cannot_be_compiled_is_one_line_and_writes_nothing(run, tmp_path):
    directory = tmp_path / "run"
    flags = {"--networks=vgg": "resnet50", "--rate=-1": "rate", "--chip=b1": "h200"}
    if importlib.util.find_spec("jax_plugins") is None:
        flags["--networks=cnn7"] = "cuda13"
    for flag, word in flags.items():
        result = run("roofline", flag, f"--run={directory}")
        assert result.returncode == 2
        assert len(result.stderr.strip().splitlines()) == 1
        assert word in result.stderr
    assert not directory.exists()
