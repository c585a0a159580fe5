"""Read a graph as often as it takes, and give what was found a name: orbits."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from torchorbit.arguments import PLAIN, Attr, ByMode, Ref, operands_of
from torchorbit.collecting import no_garbage_collection
from torchorbit.containers import map_leaves, map_together
from torchorbit.errors import ArgumentError, ArgumentTypeError, GraphRunError, TorchorbitError
from torchorbit.graph.calls import asking
from torchorbit.graph.dag import DagModule
from torchorbit.graph.names import names_at
from torchorbit.graph.vertices import ModuleVertex
from torchorbit.labels import Dim, Labels, joint
from torchorbit.operators import OPERATORS, RULES, Labelled, Mixing, Operands, Reading
from torchorbit.operators.labelling import SAME_LABELS, Rule, needs_everything, unlabelled
from torchorbit.orbits.flat import FlatModel
from torchorbit.orbits.operands import KnownValues, labelled_in
from torchorbit.orbits.orbit import Orbits

_MOST_READINGS = 4


def find_orbits(dag: DagModule, *, frozen: Iterable[nn.Module | str] | nn.Module | str = ()) -> Orbits:
    """Find the channels of a model that live and die together.

    Nothing is run and no weights are needed: labels are propagated through the graph, tied where channels must stay
    equal, and the connected components are the units that can be removed (see `torchorbit.labels`).

    Args:
        dag: a graph, outermost level.
        frozen: modules, paths of modules, parameters or vertices (blocks joined by ``/``, as in
            `DagModule.all_vertices`), or patterns of such paths (``"head*"``) that must stay as they are: no channel
            that goes in or comes out of them is removed. The channels of the model's inputs and outputs always stay.

    Returns:
        The orbits, in the order in which the model uses their parameters.

    Raises:
        ArgumentError: ``dag`` is a block of a graph, or something in ``frozen`` names nothing in it.
        GraphRunError: a vertex is called in a way that no rule knows, as one of a strange file may be.
    """
    with no_garbage_collection(), asking("its orbits"):
        model = FlatModel.of(dag)
        fixed = _Frozen(model, frozen)
        readings, dead = _readings(model, fixed)
        orbits = Orbits.of(model, readings)
        orbits.fixed, orbits.dead = fixed, dead
        return orbits


def _readings(model: FlatModel, fixed: _Frozen) -> tuple[list[Reading], set[tuple[str, int]]]:
    """The readings, and the dimensions of parameters that were left out of them because no reading can prune them."""
    dead: set[tuple[str, int]] = set()
    while True:
        readings = _round(model, fixed, dead)
        found = {dim for reading in readings if reading.labels.contested for dim in _dead(reading)}
        if not found - dead:
            return readings, dead
        # A dimension that can never be pruned took part in a choice between dimensions: choose again without it.
        dead |= found


def _round(
    model: FlatModel, fixed: _Frozen, dead: set[tuple[str, int]], labels: type[Labels] = Labels
) -> list[Reading]:
    readings: list[Reading] = []
    while not readings or len(readings) < min(max(r.labels.deepest for r in readings), _MOST_READINGS):
        readings.append(_read(model, readings, fixed, dead, labels))
    return readings


def read_again(orbits: Orbits, labels: type[Labels], *, with_dead: bool = False) -> list[Reading]:
    """Read the graph of some orbits again, as it was read for them.

    Args:
        orbits: what `find_orbits` found.
        labels: a kind of labels that notes more than `find_orbits` needs.
        with_dead: label also the dimensions that no reading can prune, which the last round leaves out.
    """
    return _round(orbits.model, orbits.fixed, set() if with_dead else orbits.dead, labels)


def orbits_at(orbits: Orbits, shapes: Mapping[str, Any]) -> Orbits:
    """Read the graph of some orbits at another size of its inputs, and leave units ungathered.

    Args:
        orbits: what `find_orbits` found.
        shapes: of its inputs, by name.

    Raises:
        GraphRunError: the graph does not run with these shapes.
    """
    with no_garbage_collection():
        model = FlatModel.of(orbits.model.dag, input_shapes=shapes)
        model.compare_with(orbits.model.graph.shapes)
        readings: list[Reading] = []
        for _ in orbits.readings:
            readings.append(_read(model, readings, orbits.fixed, orbits.dead, Labels))
        found = Orbits(model, readings)
        found.fixed, found.dead = orbits.fixed, orbits.dead
        return found


def _dead(reading: Reading) -> set[tuple[str, int]]:
    """Dimensions of parameters that no reading can prune, if such were merged with others."""
    components = reading.labels.components(all_readings=True)
    frozen = components == components[0]
    if not any(frozen[dim].all() for dim in reading.labels.contested):
        return set()
    return {
        (path, axis)
        for path, value in reading.attributes.items()
        for axis, dim in enumerate(value.dims)
        if isinstance(dim, np.ndarray) and frozen[dim].all()
    }


def _read(
    model: FlatModel, earlier: list[Reading], fixed: _Frozen, dead: set[tuple[str, int]], kind: type[Labels]
) -> Reading:
    if earlier:
        # The labels of parameters are the same in all readings.
        reading = Reading(kind(len(earlier), earlier[0].labels), attributes=dict(earlier[0].attributes))
    else:
        reading = Reading(kind(0))
    labels = reading.labels
    reading.reads = model.reads
    reader = _Reader(model, reading, dead)
    value, values, shapes = reader.value, reading.values, model.graph.shapes
    known, ends = model.constants.names, model.constants.ends
    values.update(_inputs(model))
    for vertex in model.graph.vertices:
        name = vertex.name
        call = model.calls.get(name)
        if call is None:
            continue
        labels.at = ("vertex", name)
        if name in known or name in ends:
            value(tuple(call.args.values()))
            values[name] = _constant(model, reading, name)
            continue
        function = RULES.get(call.operator)
        if function in SAME_LABELS and len(call.args) == 1 and name not in fixed.vertices:
            operand = value(*call.args.values())
            if isinstance(operand, Labelled) and (operand.flags or operand.numbers or call.operator in _FLAGS):
                # Its values may be others, and so may be what they are.
                operand = Labelled(operand.shape, operand.dims, flags=_are_flags(call.operator, {"input": operand}))
            values[name] = operand
            continue
        args = {key: arg if type(arg) in PLAIN else value(arg) for key, arg in call.args.items()}
        module = model.module_at(vertex.target) if isinstance(vertex, ModuleVertex) else None
        elsewhere, lengths = partial(model.elsewhere, name), partial(model.fixed_lengths, name)
        operands = Operands(reading, name, call.operator, args, shapes.get(name), module, elsewhere, lengths)
        if function is None:
            reading.unruled.setdefault(call.operator)
            labels.at = ("unruled", name)
            result: Any = needs_everything(operands)
        else:
            result = _labelled_by(function, operands, name)
            if isinstance(result, list):
                result = Labelled(operands.shape, result)
        if name in fixed.vertices:
            labels.at = ("frozen", name)
            for tensor in [*operands.tensors(), *labelled_in(result)]:
                operands.freeze(tensor)
        marked = call.operator in _FLAGS or getattr(args.get("input"), "flags", False) or call.operator == "to"
        if marked and isinstance(result, Labelled) and _are_flags(call.operator, args):
            result = Labelled(result.shape, result.dims, flags=True)
        values[name] = result
    labels.at = ("output", "")
    for tensor in labelled_in([value(operand) for operand in operands_of(model.graph.output)]):
        for dim in tensor.dims:
            labels.freeze(dim)
    for path in fixed.attributes:
        if path in reading.attributes:
            labels.at = ("frozen", path)
            for dim in reading.attributes[path].dims:
                labels.freeze(dim)
    return reading


def _labelled_by(rule: Rule, operands: Operands, name: str) -> Any:
    """What a rule gives for the vertex of that name."""
    try:
        return rule(operands)
    except TorchorbitError:
        raise
    except Exception as error:
        raise GraphRunError(name, f"its label rule fails: {type(error).__name__}: {error}") from error


def _without_labels(value: Any) -> Any:
    """What is known of a tensor that has no labels; anything else as it is."""
    return Labelled(value.shape, [None] * len(value.shape)) if isinstance(value, Labelled) else value


def _inputs(model: FlatModel) -> dict[str, Any]:
    """What is known of the inputs, which have no labels."""
    found: dict[str, Any] = {}
    dtypes = iter(model.dag.provenance.input_dtypes if model.dag.provenance is not None else ())
    for vertex in model.graph.inputs:
        value = unlabelled(model.graph.shapes.get(vertex.name))
        for tensor in labelled_in(value):
            tensor.flags = next(dtypes, "") == "bool"
        found[vertex.name] = value
    return found


def _constant(model: FlatModel, reading: Reading, name: str) -> Any:
    """What is known of a constant: an end of it is labelled as a buffer is, and what is kept is picked from it."""
    value = unlabelled(model.graph.shapes.get(name))
    if not isinstance(value, Labelled):
        return value
    if name not in model.constants.ends:
        value.numbers = partial(model.constants.numbers, Ref(name))
        return value
    for axis, length in enumerate(value.shape):
        if length > 1:
            value.dims[axis] = reading.labels.fresh(length)
            reading.mixing.setdefault(name, []).append(Mixing("", axis, axis))
    return value


_FLAGS = frozenset([name for name, row in OPERATORS.items() if row.flags])
# What only looks at the elements of flags, or combines them, gives flags.
_OF_FLAGS = frozenset(
    {"bitwise_and", "bitwise_not", "bitwise_or", "bitwise_xor", "clone", "contiguous", "detach", "getitem", "to"}
) | frozenset([name for name, row in OPERATORS.items() if row.family == "views"])


def _are_flags(operator: str, args: dict[str, Any]) -> bool:
    """Whether a result is known to hold what is true or false."""
    if operator in _FLAGS:
        return True
    if operator not in _OF_FLAGS:
        return False
    if operator == "to" and "dtype" in args:
        return args["dtype"] is torch.bool
    counted = ("input", "other") if operator.startswith("bitwise") else ("input",)
    operands = [args[name] for name in counted if isinstance(args.get(name), Labelled)]
    return bool(operands) and all(operand.flags for operand in operands)


class _Reader(KnownValues):
    """Gives arguments as rules see them."""

    def __init__(self, model: FlatModel, reading: Reading, dead: set[tuple[str, int]]):
        super().__init__(reading)
        self.model = model
        self.dead = dead
        self.known_as: dict[int, str] = {}  # id of a parameter or buffer -> the path by which it was read first

    def by_mode(self, arg: ByMode) -> Any:
        return map_together(self.met, [self.value(arg.evaluation), self.value(arg.training)])

    def met(self, values: list[Any]) -> Any:
        """What is known of a tensor that is one in evaluation and another in training; frozen where they differ."""
        evaluation, training = values
        labels, dims = self.reading.labels, []
        alike = isinstance(evaluation, Labelled) and isinstance(training, Labelled)
        if not alike or len(evaluation.shape) != len(training.shape):
            for tensor in labelled_in(values):
                for dim in tensor.dims:
                    labels.freeze(dim)
            return map_leaves(_without_labels, evaluation)
        for axis, length in enumerate(evaluation.shape):
            pair = evaluation.dims[axis], training.dims[axis]
            dims.append(labels.meet(*pair) if training.shape[axis] == length else labels.meet(pair[0], None))
            if training.shape[axis] != length:
                labels.freeze(pair[1])
        return Labelled(evaluation.shape, dims)

    def attr(self, arg: Attr) -> Labelled:
        path = arg.path
        known = self.reading.attributes.get(path)
        if known is None:
            tensor: Tensor = self.model.tensor_at(path)
            if not isinstance(tensor, nn.Parameter):
                self.model.buffers.add(path)
            # A tensor that has two names has one set of labels.
            first = self.known_as.setdefault(id(tensor), path)
            if first != path:
                known = self.reading.attributes[first]
            else:
                # Whole numbers are positions and counts, no channels.
                numbers = tensor.is_floating_point() or tensor.is_complex()
                dims = [self.fresh(path, axis, n) if numbers else None for axis, n in enumerate(tensor.shape)]
                known = Labelled(tuple(tensor.shape), dims)
                if not numbers:
                    known.numbers = partial(self.model.constants.numbers, arg)
                    known.flags = tensor.dtype is torch.bool
            self.reading.attributes[path] = known
        return known

    def fresh(self, path: str, axis: int, length: int) -> Dim:
        if length == 1 or (path, axis) in self.dead:
            return None
        factors = self.model.tables.get((path, axis))
        if factors is None:
            return self.reading.labels.fresh(length)
        return joint([self.reading.labels.fresh(factor) for factor in factors])


class _Frozen:
    """What a caller wants frozen, as names of vertices and paths of parameters."""

    def __init__(self, model: FlatModel, frozen: Iterable[nn.Module | str] | nn.Module | str):
        self.vertices: set[str] = set()
        self.attributes: set[str] = set()
        wanted = [frozen] if isinstance(frozen, (nn.Module, str)) else list(frozen)
        if not wanted:
            return
        modules = {path: module for path, module in model.dag.named_modules(remove_duplicate=False) if path}
        tensors = [
            *[path for path, _ in model.dag.named_parameters(remove_duplicate=False)],
            *[path for path, _ in model.dag.named_buffers(remove_duplicate=False)],
        ]
        names = [vertex.name for vertex in model.graph.vertices]
        for item in wanted:
            if isinstance(item, nn.Module):
                paths = [path for path, module in modules.items() if module is item]
            elif isinstance(item, str):
                paths = [path for path in modules if _matches(path, item)]
            else:
                raise ArgumentTypeError(f"frozen holds {item!r}, expected modules, paths or patterns")
            inside = tuple([f"{path}." for path in paths])
            attributes = {path for path in tensors if path.startswith(inside)} if inside else set()
            vertices: set[str] = set()
            if isinstance(item, str):
                attributes |= {path for path in tensors if _matches(path, item)}
                vertices = {name for name in names if _matches(name, item)}
            for vertex in model.graph.vertices:
                target = getattr(vertex, "target", None)
                if target is not None and (target in paths or (inside and target.startswith(inside))):
                    vertices.add(vertex.name)
            if isinstance(item, str) and ("/" in item or not (paths or attributes or vertices)):
                at = names_at(model.dag)
                vertices |= {name for path, found in at.items() if _matches(path, item) for name in found}
            if not paths and not attributes and not vertices:
                given = repr(item) if isinstance(item, str) else f"a {type(item).__name__}"
                raise ArgumentError(
                    f"frozen: {given} names no module, parameter or vertex of the graph; paths are those of "
                    "dag.named_modules() or dag.all_vertices(), patterns are like 'blocks.*.attn'"
                )
            self.attributes |= attributes
            self.vertices |= vertices


def _matches(path: str, pattern: str) -> bool:
    return path == pattern or fnmatch.fnmatchcase(path, pattern)
