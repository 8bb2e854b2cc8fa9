"""Reads from a compiled XLA program what its kernels compute and move.

The text of an optimised program names every kernel with the shapes of the arrays that
it reads and writes. The kernels of a loop count as often as the loop takes steps.
"""

import math
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

_ARRAY = re.compile(r"\b(pred|bf16|[suf]\d+|f8\w+|c64|c128)\[([\d,]*)\]")
_COMPUTATION = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
_INSTRUCTION = re.compile(
    r"\s+(?:ROOT )?%([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*?)\)(?:, (.*))?$"
)
# Instructions that name memory, or wait, without a kernel.
_FREE = frozenset(
    (
        "parameter",
        "constant",
        "tuple",
        "get-tuple-element",
        "bitcast",
        "after-all",
        "partition-id",
        "replica-id",
    )
)
# Two arrays of cuDNN's calls, as places in (left, right, result): the array with an
# entry for every place and channel of the convolution's output, and the kernel.
_CUDNN = {
    "convForward": (2, 1),
    "convBiasActivationForward": (2, 1),
    "convBackwardInput": (0, 1),
    "convBackwardFilter": (1, 2),
}


class Kernel(NamedTuple):
    """One kernel of a program.

    Attributes:
      name: the name of its instruction.
      kind: the instruction; the name of a fusion, or of a function of a library.
      source: the place in the traced function that it comes from.
      runs: how often the program starts it.
      flops: multiplications and additions of its convolutions and matrix products;
        padding counts.
      bytes: read and written, if nothing stays in a cache from one kernel to the next.
    """

    name: str
    kind: str
    source: str
    runs: int
    flops: float
    bytes: float

    def seconds(self, rate: float, bandwidth: float) -> float:
        """Computes the time of all its runs in the roofline model.

        Args:
          rate: FLOP/s of the device.
          bandwidth: bytes per second of its memory.
        """
        return self.runs * max(self.flops / rate, self.bytes / bandwidth)


class _Instruction(NamedTuple):
    name: str
    type: str
    operation: str
    operands: tuple[str, ...]
    rest: str


def read(text: str) -> list[Kernel]:
    """Returns the kernels of an optimised program.

    Args:
      text: the result of ``jax.stages.Compiled.as_text()`` for a CPU or GPU.

    Raises:
      ValueError: for a loop whose number of steps the program does not say.
    """
    computations: dict[str, list[_Instruction]] = {}
    entry, current = "", ""
    for line in text.splitlines():
        opened = _COMPUTATION.match(line)
        if opened and not line.startswith(" "):
            current = opened[2]
            computations[current] = []
            entry = current if opened[1] else entry
            continue
        found = _INSTRUCTION.match(line)
        if found and current:
            name, result, operation, operands, rest = found.groups()
            names = tuple(re.findall(r"%([\w.\-]+)", operands))
            computations[current].append(
                _Instruction(name, result, operation, names, rest or "")
            )
    return list(_kernels(computations, entry, 1))


def _kernels(
    computations: Mapping[str, list[_Instruction]], name: str, runs: int
) -> Iterator[Kernel]:
    types = {one.name: one.type for one in computations[name]}
    for one in computations[name]:
        if one.operation in _FREE or one.operation.endswith("-done"):
            continue
        if one.operation == "while":
            steps = re.search(r'"known_trip_count":\{"n":"(\d+)"', one.rest)
            if steps is None:
                raise ValueError(
                    f"the loop {one.name} takes a number of steps that the program "
                    "does not say; only loops of a fixed length can be counted."
                )
            body = _called(one, "body")
            yield from _kernels(computations, body, runs * int(steps[1]))
        elif one.operation == "call":
            yield from _kernels(computations, _called(one, "to_apply"), runs)
        elif one.operation == "conditional":
            for branch in re.findall(
                r"%([\w.\-]+)", _field(one, "branch_computations")
            ):
                yield from _kernels(computations, branch, runs)
        else:
            yield _kernel(one, computations, types, runs)


def _kernel(
    one: _Instruction,
    computations: Mapping[str, list[_Instruction]],
    types: Mapping[str, str],
    runs: int,
) -> Kernel:
    kind, flops = one.operation, _flops(one, types)
    if one.operation == "fusion":
        kind = re.sub(r"[._\d]+$", "", one.name)
        inside = computations[_called(one, "calls")]
        inner = {each.name: each.type for each in inside}
        flops = sum(_flops(each, inner) for each in inside)
    elif one.operation == "custom-call":
        kind = _target(one)
    source = re.search(r'op_name="([^"]*)"', one.rest)
    # An operand that is given twice is read once. Tuples are read by their parts.
    read = sum(
        _size(types.get(operand, ""))
        for operand in dict.fromkeys(one.operands)
        if not types.get(operand, "").startswith("(")
    )
    return Kernel(
        name=one.name,
        kind=kind,
        source=source[1] if source else "",
        runs=runs,
        flops=flops,
        bytes=read + _size(one.type),
    )


def _flops(one: _Instruction, types: Mapping[str, str]) -> float:
    """The arithmetic of a convolution or matrix product; 0 for other instructions."""
    library = one.operation == "custom-call"
    target = _target(one) if library else ""
    if one.operation not in ("convolution", "dot") and not library:
        return 0.0
    shapes = [_shape(types.get(operand, "")) for operand in one.operands[:2]]
    shapes.append(_shape(one.type))
    if one.operation == "convolution" or target.removeprefix("__cudnn$") in _CUDNN:
        output, kernel = _CUDNN.get(target.removeprefix("__cudnn$"), (2, 1))
        labels = re.match(r"\w+_(\w+)->\w+", _field(one, "dim_labels"))
        assert labels is not None
        channels = shapes[kernel][labels[1].index("o")]
        return 2.0 * math.prod(shapes[output]) * math.prod(shapes[kernel]) / channels
    if one.operation == "dot":
        contracted = _field(one, "lhs_contracting_dims").strip("{}")
    elif target.startswith("__cublas"):
        found = re.search(r'"lhs_contracting_dimensions":\[([^\]]*)\]', one.rest)
        contracted = found[1].replace('"', "") if found else ""
    else:
        return 0.0
    summed = [shapes[0][int(axis)] for axis in contracted.split(",") if axis]
    return 2.0 * math.prod(shapes[2]) * math.prod(summed)


def _target(one: _Instruction) -> str:
    return _field(one, "custom_call_target").strip('"')


def _called(one: _Instruction, field: str) -> str:
    return _field(one, field).lstrip("%")


def _field(one: _Instruction, name: str) -> str:
    found = re.search(rf"\b{name}=(\{{[^}}]*\}}|[^,\s]+)", one.rest)
    assert found is not None, (name, one)
    return found[1]


def _shape(text: str) -> tuple[int, ...]:
    """The shape of an array, or of a tuple's first array."""
    found = _ARRAY.search(text)
    return _dimensions(found[2]) if found else ()


def _size(text: str) -> float:
    """Bytes of an array, or of all arrays of a tuple."""
    return sum(
        _width(dtype) * math.prod(_dimensions(dimensions))
        for dtype, dimensions in _ARRAY.findall(text)
    )


def _width(dtype: str) -> float:
    """Bytes of an entry: the first number in a dtype's name is its bits."""
    bits = re.search(r"\d+", dtype)
    return int(bits[0]) / 8 if bits else 1


def _dimensions(text: str) -> tuple[int, ...]:
    return tuple(int(size) for size in text.split(",") if size)
