"""The reading of a program, operation by operation.

Values that do not depend on the input are computed only if they are needed. Values that
depend on it are followed as shapes, with what is known of their slopes.
"""

import math
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core as jex_core

from opnorm import linalg
from opnorm.linalg.loops import CALLS, open_jaxpr
from opnorm.operators import kernel_forms, known_values, layer_values
from opnorm.operators.kernel_forms import Form, Steps
from opnorm.operators.known_values import Equation, concrete, constant, once, parameter
from opnorm.operators.layer_graph import Node
from opnorm.operators.layer_values import Known, Live, Value, broadcast

# A program of JAX, and a variable or literal of one. JAX makes neither type public.
Jaxpr = Any
Atom = Any
# Examples in the trace. Results do not depend on the number.
BATCH = 2
# A scan is read step by step up to this many operations in all.
_MOST_OPERATIONS = 20_000


class Found(NamedTuple):
    """A layer in a program.

    Attributes:
      kind: as in :class:`opnorm.operators.Layer`.
      kernel: returns the kernel of the layer in its form.
      input_shape: as in :class:`opnorm.operators.Layer`.
      options: strides, padding, kernel_dilation and groups of a convolution.
      transposed: as in :class:`opnorm.operators.Layer`.
      sources: positions of the arrays that the kernel is computed from.
      leaf: position of the array whose entries the kernel is; None if it is computed.
      steps: moves from that array to the kernel.
      folded: sources of factors that the kernel contains.
    """

    kind: str
    kernel: Callable[[], jax.Array]
    input_shape: tuple[int, ...]
    options: linalg.Options
    transposed: bool
    sources: frozenset[int]
    leaf: int | None
    steps: Steps
    folded: frozenset[int] = frozenset()


class Reader:
    """Reads a program and collects its layers.

    Args:
      handlers: the functions that read operations, by the name of the primitive.
      names: the names of the parameters.
      scales: "fold", "separate" or "ignore" for factors that are parameters.
      constants: whether constant arrays of the program are parameters, too.
    """

    def __init__(
        self,
        handlers: Mapping[str, "Handler"],
        names: Sequence[str],
        *,
        scales: str,
        constants: bool,
    ) -> None:
        self.handlers = handlers
        self.names = list(names)
        self.scales = scales
        self.constants = constants
        self.numbers: dict[int, int] = {}
        self.kept: list[Live] = []
        self.renewed: dict[tuple[int, int], Live] = {}
        self.tokens = False
        self.layers: list[Found] = []
        self.nodes: list[Node] = []
        self.uncounted: list[str] = []
        self.ignored: list[frozenset[int]] = []
        self.operations = 0

    def run(
        self, jaxpr: Jaxpr, constants: Sequence[Value], given: Sequence[Value]
    ) -> list[Value]:
        """Returns the results of an open jaxpr."""
        uses: Counter[Any] = Counter()
        for atoms in (*(eqn.invars for eqn in jaxpr.eqns), jaxpr.outvars):
            uses.update({id(a): a for a in atoms if not _is_literal(a)}.keys())
        values: dict[Any, Value] = {}
        values |= dict(zip(jaxpr.constvars, constants, strict=True))
        values |= dict(zip(jaxpr.invars, given, strict=True))

        def read(atom: Any) -> Value:
            if _is_literal(atom):
                return self.constant(atom.val)
            value = values[atom]
            if isinstance(value, Live) and uses[id(atom)] > 1:
                # A factor after an output that others share is not folded.
                return value._replace(layer=None, channel_axis=None)
            return value

        for eqn in jaxpr.eqns:
            self.operations += 1
            results = self.step(eqn, [read(atom) for atom in eqn.invars])
            values |= dict(zip(eqn.outvars, results, strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    def step(self, eqn: Equation, inputs: list[Value]) -> list[Value]:
        """Returns the results of one operation."""
        name = eqn.primitive.name
        inner = eqn.params.get(CALLS.get(name, ""))
        if inner is not None and len(open_jaxpr(inner)[0].invars) == len(inputs):
            opened, constants = open_jaxpr(inner)
            return self.run(opened, [self.constant(c) for c in constants], inputs)
        if not any(isinstance(value, Live) for value in inputs):
            return [
                *known_values.evaluated(
                    eqn, [v for v in inputs if isinstance(v, Known)]
                )
            ]
        if name == "scan":
            return self.scan(eqn, inputs)
        if name == "cond":
            return self.cond(eqn, inputs)
        handler = self.handlers.get(name)
        found = None if handler is None else handler(self, eqn, inputs)
        if found is None:
            return self.unknown(eqn, inputs)
        return found if isinstance(found, list) else [found]

    def constant(self, array: Any) -> Known:
        """Returns a constant of the program, which may count as a parameter."""
        if not self.constants or jnp.size(array) < 2:
            return constant(array)
        if id(array) not in self.numbers:
            self.numbers[id(array)] = len(self.names)
            self.names.append(f"constant_{len(self.numbers) - 1}")
        return parameter(array, self.numbers[id(array)])

    def settle(self, value: Live) -> tuple[float, int]:
        """Returns the gain of a value and its node, for a node that follows."""
        gain = layer_values.gain(value)
        if math.isinf(gain):
            self.uncounted.append(value.unbounded or "a function of unknown slope")
            gain = 1.0
        return gain, value.anchor.node

    def renew(self, value: Live) -> Live:
        """Returns a value as an anchor of its own if its curve is not known.

        A value that is used twice becomes one anchor.
        """
        if value.curve is not None or value.discrete:
            return value
        place = value.anchor.number, id(value.entries)
        if place not in self.renewed:
            gain, node = self.settle(value)
            # The entries are kept, so that no other object has their identity.
            self.renewed[place] = layer_values.fresh(value.shape, node, gain)
            self.kept.append(value)
        return self.renewed[place]

    def unknown(self, eqn: Equation, inputs: Sequence[Value]) -> list[Value]:
        """Names an operation that is not understood."""
        outputs = [var.aval for var in eqn.outvars]
        if all(not jnp.issubdtype(aval.dtype, jnp.floating) for aval in outputs):
            # Choices and positions are constant almost everywhere.
            live = next(value for value in inputs if isinstance(value, Live))
            return [
                Live(aval.shape, live.anchor, None, math.inf, None, discrete=True)
                for aval in outputs
            ]
        sources = set().union(*(v.sources for v in inputs if isinstance(v, Known)))
        self.uncounted.append(self.text(eqn, sources))
        self.nodes.append(Node("unknown", -1, ()))
        return [
            layer_values.fresh(aval.shape, len(self.nodes) - 1)._replace(
                discrete=not jnp.issubdtype(aval.dtype, jnp.floating)
            )
            for aval in outputs
        ]

    def is_token(self, value: Live) -> bool:
        """Tells whether a value of integers is computed from an input of integers."""
        return self.tokens and value.discrete and value.anchor.node == 0

    def text(self, eqn: Equation, sources: Collection[int] = ()) -> str:
        """Describes an operation in words."""
        text = str(eqn.primitive.name)
        if sources:
            text += " of " + ", ".join(self.names[number] for number in sorted(sources))
        scope = str(eqn.source_info.name_stack)
        return f"{text} in {scope}" if scope else text

    def add_layer(self, form: Form, kernel: Known, value: Live, shape: Any) -> Live:
        """Adds a layer that acts on a value, and returns its output."""
        steps = kernel_forms.minimal_steps(kernel.shape, form.steps)
        placed = kernel.leaf is not None
        self.layers.append(
            Found(
                form.kind,
                once(lambda: kernel_forms.apply_steps(kernel.value(), steps)),
                form.input_shape,
                form.options,
                form.transposed,
                kernel.sources,
                kernel.leaf,
                (*kernel.steps, *steps) if placed else (),
            )
        )
        number = len(self.layers) - 1
        self.nodes.append(Node("layer", number, (self.settle(value),)))
        output = layer_values.fresh(shape, len(self.nodes) - 1)
        if form.channel_axis is None:
            return output
        return output._replace(layer=number, channel_axis=form.channel_axis)

    def scaled(self, value: Live, factor: Known, shape: tuple[int, ...]) -> Live | None:
        """Multiplies a value by a known factor that is not one number."""
        varies = (False,) * (len(shape) - len(factor.varies)) + factor.varies
        if not factor.sources:
            size = known_values.largest(factor)
            if size is None:
                return None
            gain, node = self.settle(broadcast(value, shape))
            return layer_values.fresh(shape, node, gain * size)
        if self.scales == "ignore":
            self.ignored.append(factor.sources)
            gain, node = self.settle(broadcast(value, shape))
            return layer_values.fresh(shape, node, gain)
        along = tuple(axis for axis, differs in enumerate(varies) if differs)
        entries = once(lambda: known_values.varying_entries(factor, varies))
        number, axis = value.layer, value.channel_axis
        fits = number is not None and along in ((axis,), ()) and value.shape == shape
        if self.scales == "fold" and number is not None and fits:
            layer = self.layers[number]
            self.layers[number] = layer._replace(
                kernel=once(lambda: _multiplied(layer.kernel(), entries())),
                folded=layer.folded | factor.sources,
            )
            return value
        wide = broadcast(value, shape)
        input_shape = kernel_forms.scale_shape(shape, varies, BATCH)
        if input_shape is None:
            return None
        form = Form("scale", (), input_shape, {})
        kernel = Known(entries, input_shape[-1:], (True,), factor.sources)
        return self.add_layer(form, kernel, wide, shape)

    def scan(self, eqn: Equation, inputs: list[Value]) -> list[Value]:
        """Reads a scan step by step."""
        params = eqn.params
        body, constants = open_jaxpr(params["jaxpr"])
        length = params["length"]
        if self.operations + length * len(body.eqns) > _MOST_OPERATIONS:
            return self.unknown(eqn, inputs)
        # Releases of JAX name the numbers of arguments differently. Scanned arguments
        # and stacked results have one axis more than in the body.
        split = len(inputs) - _num_scanned(eqn.invars, body.invars)
        num_carry = len(eqn.outvars) - _num_scanned(eqn.outvars, body.outvars)
        first = split - num_carry
        fixed, carry, rows = inputs[:first], inputs[first:split], inputs[split:]
        order = range(length)[::-1] if params["reverse"] else range(length)
        stacked: dict[int, list[Value]] = {}
        for number in order:
            given = [*fixed, *carry, *(_row(value, number) for value in rows)]
            results = self.run(body, [self.constant(c) for c in constants], given)
            carry, stacked[number] = results[: len(carry)], results[len(carry) :]
        columns = zip(*(stacked[number] for number in range(length)), strict=True)
        return [*carry, *(self.stack(list(column)) for column in columns)]

    def stack(self, column: list[Value]) -> Value:
        """Stacks values along a new first axis."""
        if all(isinstance(value, Known) for value in column):
            known = [value for value in column if isinstance(value, Known)]
            shape = (len(known), *known[0].shape)
            value = once(lambda: jnp.stack([one.value() for one in known]))
            sources = frozenset().union(*(one.sources for one in known))
            return Known(value, shape, tuple(n > 1 for n in shape), sources)
        return self.concatenated(
            [_reshaped(value, (1, *value.shape)) for value in column], 0
        )

    def cond(self, eqn: Equation, inputs: list[Value]) -> list[Value]:
        """Reads the branch that a known index chooses."""
        index = inputs[0]
        number = None if isinstance(index, Live) else concrete(index)
        if number is None:
            return self.unknown(eqn, inputs)
        branches = eqn.params["branches"]
        chosen = branches[int(np.clip(int(number), 0, len(branches) - 1))]
        opened, constants = open_jaxpr(chosen)
        return self.run(opened, [self.constant(c) for c in constants], inputs[1:])

    def concatenated(self, parts: Sequence[Value], axis: int) -> Live:
        """Puts values side by side."""
        live = [part for part in parts if isinstance(part, Live)]
        size = sum(part.shape[axis] for part in parts)
        shape = (*parts[0].shape[:axis], size, *parts[0].shape[axis + 1 :])
        one = all(part.anchor == live[0].anchor for part in live)
        if one and all(len(layer_values.positions(part)) == 1 for part in live):
            index = np.concatenate(
                [
                    layer_values.positions(part)[0]
                    if isinstance(part, Live)
                    else np.full(part.shape, -1)
                    for part in parts
                ],
                axis,
            )
            known = len(live) < len(parts)
            alike = not known and all(part.slope == 1 for part in live)
            return live[0]._replace(
                shape=shape,
                entries=(index,),
                slope=1.0 if alike else max(_slope(part) for part in live),
                curve=live[0].curve if alike else None,
                layer=None,
                channel_axis=None,
            )
        return self.joined("stack", live, shape)

    def joined(self, kind: str, live: Sequence[Live], shape: tuple[int, ...]) -> Live:
        """Returns a value whose parents are several values, as one node."""
        parents = [self.settle(value) for value in live]
        nodes = {node for _, node in parents}
        if len(nodes) == 1:
            gains = [gain for gain, _ in parents]
            total = sum(gains) if kind == "sum" else math.hypot(*gains)
            return layer_values.fresh(shape, parents[0][1], total)
        self.nodes.append(join_node(kind, parents))
        return layer_values.fresh(shape, len(self.nodes) - 1)


def join_node(kind: str, parents: Sequence[tuple[float, int]]) -> Node:
    """Returns a node of several values, or of a single one."""
    return Node("sum" if len(parents) == 1 else kind, -1, tuple(parents))


def _slope(value: Live) -> float:
    """The slope of a value, from its curve where that alone tells."""
    alone = value._replace(entries=None)
    return layer_values.gain(alone) / (value.anchor.gain or 1.0)


def _is_literal(atom: Any) -> bool:
    return isinstance(atom, jex_core.Literal)


def _multiplied(kernel: jax.Array, factors: jax.Array) -> jax.Array:
    """A kernel with factors along its last axis."""
    return kernel * factors.reshape((1,) * (kernel.ndim - 1) + (-1,))


def _num_scanned(whole: Sequence[Atom], each: Sequence[Atom]) -> int:
    """The number of atoms that have one axis more outside of a scan than inside."""
    pairs = zip(whole, each, strict=True)
    return sum(len(a.aval.shape) > len(b.aval.shape) for a, b in pairs)


def _row(value: Value, number: int) -> Value:
    """The row of a scanned argument."""
    if isinstance(value, Live):
        return layer_values.moved(value, lambda index: index[number])
    return Known(
        once(lambda: value.value()[number]),
        value.shape[1:],
        value.varies[1:],
        value.sources,
    )


def _reshaped(value: Value, shape: tuple[int, ...]) -> Value:
    if isinstance(value, Known):
        return Known(lambda: value.value(), shape, (False,) * len(shape), value.sources)
    return layer_values.moved(value, lambda index: index.reshape(shape))


# Reads an operation: returns its results, or None if it is not understood.
Handler = Callable[[Reader, Equation, list[Value]], Live | list[Value] | None]
