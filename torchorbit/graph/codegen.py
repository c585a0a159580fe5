"""Write a graph as the Python function that runs it.

A graph is not interpreted: its forward is generated once, so that running it costs what the source's forward costs.
Every vertex is one line, and a value is deleted after its last use.
"""

from __future__ import annotations

import itertools
import keyword
import linecache
import math
import re
from collections.abc import Iterable, Sequence
from typing import Any

import torch

from torchorbit.arguments import Attr, ByMode, Expr, Ref, SameDevice, SameDtype, Size, Visitor
from torchorbit.expressions import EXPRESSIONS, NAMES
from torchorbit.graph.vertices import InputVertex, ModuleVertex, OperatorVertex, Vertex, last_uses
from torchorbit.operators.table import OPERATORS
from torchorbit.records import Record

_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")


def _check_fixed(given: Any, recorded: Any, name: str) -> None:
    """Refuse another value of an input that is no tensor: the graph holds what follows from the recorded one."""
    if given is not recorded and (type(given) is not type(recorded) or given != recorded):
        raise RuntimeError(f"input '{name}' was recorded as {recorded!r}, and {given!r} is given")


#: Everything that generated code can see. Underscores keep it apart from the names of inputs and vertices.
NAMESPACE: dict[str, Any] = {
    **{f"_{name}": row.function for name, row in OPERATORS.items()},
    **NAMES,
    "_torch": torch,
    "_inf": math.inf,
    "_nan": math.nan,
    "_slice": slice,
    "_getattr": getattr,
    "_py_complex": complex,
    "_check_fixed": _check_fixed,
}
RESERVED = frozenset({*NAMESPACE, *keyword.kwlist, "self"})
_TYPE_PREFIX = "_type_"  # of the named tuples and records that one graph needs


def is_valid_name(name: object) -> bool:
    """Whether a vertex may be called this: an identifier that hides nothing generated code uses."""
    if not isinstance(name, str) or not _IDENTIFIER.match(name) or name in RESERVED:
        return False
    return not name.startswith(("__", _TYPE_PREFIX))


#: Names of `DagModule` itself, which a submodule or parameter of a source model may also have.
SHADOWED: set[str] = set()


def _plain(part: str) -> bool:
    return bool(_IDENTIFIER.match(part)) and not keyword.iskeyword(part) and not part.startswith("__")


def submodule(path: str) -> str:
    """Code that reads a submodule of ``self`` by its dotted path."""
    code = "self"
    for part in path.split(".") if path else ():
        if part in SHADOWED:
            code = f"{code}._modules[{part!r}]"
        else:
            code = f"{code}.{part}" if _plain(part) else f"_getattr({code}, {part!r})"
    return code


def attribute(path: str) -> str:
    """Code that reads a parameter or buffer below ``self`` by its dotted path."""
    owner, _, name = path.rpartition(".")
    code = submodule(owner)
    if name in SHADOWED:
        return f"{code}._parameters.get({name!r}, {code}._buffers.get({name!r}))"
    return f"{code}.{name}" if _plain(name) else f"_getattr({code}, {name!r})"


class _Code(Visitor, kinds={torch.device: "device", float: "number", int: "number", complex: "complex_"}):
    """Writes arguments as code.

    Args:
        types: collects the classes of named tuples and records that they need.
    """

    def __init__(self, types: dict[str, Any]):
        self.types = types

    def listed(self, items: Iterable[Any]) -> str:
        """Several arguments with commas between them."""
        return ", ".join([self.value(item) for item in items])

    def ref(self, arg: Ref) -> str:
        return arg.vertex + "".join([f"[{item!r}]" for item in arg.index])

    def attr(self, arg: Attr) -> str:
        return attribute(arg.path)

    def size(self, arg: Size) -> str:
        return f"{self.value(arg.value)}.size({arg.dim})"

    def expr(self, arg: Expr) -> str:
        return EXPRESSIONS[arg.operator].format(*[self.value(operand) for operand in arg.operands])

    def by_mode(self, arg: ByMode) -> str:
        return f"({self.value(arg.training)} if {submodule(arg.owner)}.training else {self.value(arg.evaluation)})"

    def same_device(self, arg: SameDevice) -> str:
        return f"{self.value(arg.value)}.device"

    def same_dtype(self, arg: SameDtype) -> str:
        return f"{self.value(arg.value)}.dtype"

    def tuple_(self, arg: tuple[Any, ...]) -> str:
        return f"({self.listed(arg)},)" if len(arg) == 1 else f"({self.listed(arg)})"

    def named_tuple(self, arg: tuple[Any, ...]) -> str:
        kind = type(arg)
        items = self.listed(arg) if hasattr(kind, "_fields") else self.tuple_(arg)  # what torch calls a return type
        return f"{self.named(kind, kind.__name__)}({items})"

    def named(self, kind: Any, name: str) -> str:
        """A name for a class that is needed to write an argument."""
        known = next((written for written, other in self.types.items() if other == kind), None)
        written = known or f"{_TYPE_PREFIX}{len(self.types)}_{re.sub('[^A-Za-z0-9_]', '_', name)}"
        self.types[written] = kind
        return written

    def record(self, arg: Record) -> str:
        given = [self.dict_(arg.attributes)]
        if arg.items is not None:
            given += [self.dict_(arg.items), *([self.tuple_(arg.both)] if arg.both else [])]
        return f"{self.named(arg.kind, arg.kind.name)}.make({', '.join(given)})"

    def list_(self, arg: list[Any]) -> str:
        return f"[{self.listed(arg)}]"

    def dict_(self, arg: dict[Any, Any]) -> str:
        return "{" + ", ".join([f"{self.value(key)}: {self.value(item)}" for key, item in arg.items()]) + "}"

    def slice_(self, arg: slice) -> str:
        return f"_slice({self.listed((arg.start, arg.stop, arg.step))})"

    def device(self, arg: torch.device) -> str:
        return f"_torch.device({str(arg)!r})"

    def number(self, arg: float) -> str:
        if type(arg) is float and not math.isfinite(arg):
            return "_nan" if arg != arg else "_inf" if arg > 0 else "(-_inf)"
        return f"({arg!r})" if arg < 0 else repr(arg)

    def complex_(self, arg: complex) -> str:
        return f"_py_complex({self.value(arg.real)}, {self.value(arg.imag)})"

    def constant(self, arg: Any) -> str:
        if isinstance(arg, (torch.dtype, torch.memory_format, torch.layout)):
            return f"_{arg}"
        return "..." if arg is Ellipsis else repr(arg)


def argument(arg: Any) -> str:
    """Code for one argument, as it is shown to people."""
    return _Code({}).value(arg)


def _call(vertex: OperatorVertex, code: _Code) -> str:
    row = OPERATORS[vertex.operator]
    args = vertex.args
    if row.style == "infix" and len(args) == 2:
        first, second = args.values()
        return f"{code.value(first)} {row.symbol} {code.value(second)}"
    if row.style == "index":
        index = args["index"]
        if type(index) is tuple and index:
            inner = ", ".join([_subscript(a, code) for a in index]) + ("," if len(index) == 1 else "")
        else:
            inner = _subscript(index, code)
        return f"{code.value(args['input'])}[{inner}]"
    written: list[str] = []
    by_name = False
    for name in row.parameters:
        if name not in args:
            by_name = True
        elif by_name or name in row.keyword_only:
            written.append(f"{name}={code.value(args[name])}")
        else:
            written.append(code.value(args[name]))
    if row.style == "method":
        return f"{written[0]}.{row.name}({', '.join(written[1:])})"
    return f"_{row.name}({', '.join(written)})"


def _subscript(index: Any, code: _Code) -> str:
    if type(index) is not slice:
        return code.value(index)
    parts = ["" if part is None else code.value(part) for part in (index.start, index.stop, index.step)]
    return ":".join(parts if parts[2] else parts[:2])


def _signature(inputs: Sequence[InputVertex], code: _Code) -> str:
    """The parameters of the generated forward. Fixed ones may be left out, where Python's syntax lets them."""
    written = ["self"]
    keywords = False
    for position, vertex in enumerate(inputs):
        if vertex.keyword and not keywords:
            written.append("*")
            keywords = True
        last = vertex.keyword or not any(not v.fixed and not v.keyword for v in inputs[position:])
        written.append(f"{vertex.name}={code.value(vertex.fixed[0])}" if vertex.fixed and last else vertex.name)
    return ", ".join(written)


def generate(vertices: Sequence[Vertex], output: Any) -> tuple[str, dict[str, Any]]:
    """The source of ``forward``, and the names it needs besides `NAMESPACE`."""
    types: dict[str, Any] = {}
    code = _Code(types)
    dead = last_uses(vertices, output)
    inputs = [vertex for vertex in vertices if isinstance(vertex, InputVertex)]
    lines = [f"def forward({_signature(inputs, code)}):"]
    lines += [
        f"    _check_fixed({vertex.name}, {code.value(vertex.fixed[0])}, {vertex.name!r})"
        for vertex in inputs
        if vertex.fixed
    ]
    for position, vertex in enumerate(vertices):
        if isinstance(vertex, InputVertex):
            continue
        if isinstance(vertex, ModuleVertex):
            args = [code.value(a) for a in vertex.args]
            args += [f"{name}={code.value(a)}" for name, a in vertex.kwargs.items()]
            line = f"{vertex.name} = {submodule(vertex.target)}({', '.join(args)})"
        elif OPERATORS[vertex.operator].effect:
            line = _call(vertex, code)
        else:
            line = f"{vertex.name} = {_call(vertex, code)}"
        if vertex.mode:
            flag = f"{'' if vertex.mode == 'training' else 'not '}{submodule(vertex.owner)}.training"
            effect = isinstance(vertex, OperatorVertex) and OPERATORS[vertex.operator].effect
            line = f"if {flag}: {line}" if effect else f"{line} if {flag} else None"
        if position in dead and not line.startswith("if "):
            line = f"{line}; del {', '.join(dead[position])}"
        lines.append("    " + line)
    lines.append(f"    return {code.value(output)}")
    return "\n".join(lines) + "\n", types


_numbers = itertools.count(1)


def compile_forward(source: str, types: dict[str, Any]) -> Any:
    """Compile a generated forward; tracebacks and `inspect` find its source."""
    filename = f"<torchorbit graph {next(_numbers)}>"
    scope: dict[str, Any] = {**NAMESPACE, **types}
    exec(compile(source, filename, "exec"), scope)
    linecache.cache[filename] = (len(source), None, source.splitlines(keepends=True), filename)
    return scope["forward"]
