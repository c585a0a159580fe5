"""Write a graph as the Python function that runs it.

A graph is not interpreted: its forward is generated once, so that running it costs what the source's forward costs.
Every vertex is one line, and a value is deleted after its last use.
"""

from __future__ import annotations

import functools
import keyword
import linecache
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import torch

from torchorbit.arguments import EXPRESSIONS, Attr, ByMode, Expr, Ref, SameDevice, SameDtype, Size, walk_args
from torchorbit.graph.vertices import InputVertex, ModuleVertex, OperatorVertex, Vertex, vertex_args
from torchorbit.operators.table import OPERATORS

_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")


def _check_fixed(given: Any, recorded: Any, name: str) -> None:
    """Refuse another value of an input that is no tensor: the graph holds what follows from the recorded one."""
    if given is not recorded and (type(given) is not type(recorded) or given != recorded):
        raise RuntimeError(f"input '{name}' was recorded as {recorded!r}, and {given!r} is given")


def _power(base: Any, exponent: Any) -> Any:
    """``base ** exponent`` of numbers, as long as that is a size a tensor can have."""
    if isinstance(base, int) and isinstance(exponent, int) and base.bit_length() * exponent > _MAX_BITS:
        raise OverflowError(f"{base} ** {exponent} is no size")
    return base**exponent


def _shifted(number: int, by: int) -> int:
    """``number << by``, as long as that is a size a tensor can have."""
    if by > _MAX_BITS:
        raise OverflowError(f"{number} << {by} is no size")
    return number << by


# Python computes with integers of any length, for as long as that takes.
_MAX_BITS = 256

#: Everything that generated code can see. Underscores keep it apart from the names of inputs and vertices, and
#: ``_py_`` what numbers go through from the operators of the same name (``round``).
NAMESPACE: dict[str, Any] = {
    **{f"_{name}": row.function for name, row in OPERATORS.items()},
    "_torch": torch,
    "_math": math,
    "_inf": math.inf,
    "_nan": math.nan,
    "_slice": slice,
    "_getattr": getattr,
    **{f"_py_{function.__name__}": function for function in (abs, int, float, round, bool, complex)},
    "_py_power": _power,
    "_py_shifted": _shifted,
    "_check_fixed": _check_fixed,
}
RESERVED = frozenset({*NAMESPACE, *keyword.kwlist, "self"})
_TYPE_PREFIX = "_type_"  # of the named tuples that one graph needs


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


def computed(expr: Expr, value: Callable[[Any], Any]) -> Any:
    """The value of an expression, given what its operands are."""
    return _function(expr.operator)(*[value(operand) for operand in expr.operands])


@functools.cache
def _function(operator: str) -> Callable[..., Any]:
    """Arithmetic as a function of its operands."""
    names = ["first", "second"][: EXPRESSIONS[operator].count("{")]
    return eval(f"lambda {', '.join(names)}: {EXPRESSIONS[operator].format(*names)}", NAMESPACE)  # closed: a table


def argument(arg: Any, types: dict[str, Any]) -> str:
    """Code for an argument. ``types`` collects the named tuples that it needs."""
    kind = type(arg)
    if kind is Ref:
        return arg.vertex + "".join([f"[{item!r}]" for item in arg.index])
    if kind is Attr:
        return attribute(arg.path)
    if kind is tuple:
        inner = ", ".join([argument(a, types) for a in arg])
        return f"({inner},)" if len(arg) == 1 else f"({inner})"
    if kind is list:
        return "[" + ", ".join([argument(a, types) for a in arg]) + "]"
    if kind is dict:
        return "{" + ", ".join([f"{argument(key, types)}: {argument(a, types)}" for key, a in arg.items()]) + "}"
    if kind is slice:
        return f"_slice({argument(arg.start, types)}, {argument(arg.stop, types)}, {argument(arg.step, types)})"
    if kind is Size:
        return f"{argument(arg.value, types)}.size({arg.dim})"
    if kind is Expr:
        return EXPRESSIONS[arg.operator].format(*[argument(a, types) for a in arg.operands])
    if kind is ByMode:
        flag = f"{submodule(arg.owner)}.training"
        return f"({argument(arg.training, types)} if {flag} else {argument(arg.evaluation, types)})"
    if kind is SameDevice:
        return f"{argument(arg.value, types)}.device"
    if kind is SameDtype:
        return f"{argument(arg.value, types)}.dtype"
    if kind is torch.device:
        return f"_torch.device({str(arg)!r})"
    if kind is float and not math.isfinite(arg):
        return "_nan" if arg != arg else "_inf" if arg > 0 else "(-_inf)"
    if kind is complex:
        return f"_py_complex({argument(arg.real, types)}, {argument(arg.imag, types)})"
    if kind in (int, float) and arg < 0:
        return f"({arg!r})"
    if kind in (torch.dtype, torch.memory_format, torch.layout):
        return f"_{arg}"
    if arg is Ellipsis:
        return "..."
    if isinstance(arg, tuple):  # a named tuple
        name = next((n for n, known in types.items() if known is kind), f"{_TYPE_PREFIX}{len(types)}_{kind.__name__}")
        types[name] = kind
        return f"{name}({', '.join([argument(a, types) for a in arg])})"
    return repr(arg)


def _call(vertex: OperatorVertex, types: dict[str, Any]) -> str:
    row = OPERATORS[vertex.operator]
    args = vertex.args
    if row.style == "infix" and len(args) == 2:
        first, second = args.values()
        return f"{argument(first, types)} {row.symbol} {argument(second, types)}"
    if row.style == "index":
        index = args["index"]
        if type(index) is tuple and index:
            inner = ", ".join([_subscript(a, types) for a in index]) + ("," if len(index) == 1 else "")
        else:
            inner = _subscript(index, types)
        return f"{argument(args['input'], types)}[{inner}]"
    written: list[str] = []
    by_name = False
    for name in row.parameters:
        if name not in args:
            by_name = True
        elif by_name or name in row.keyword_only:
            written.append(f"{name}={argument(args[name], types)}")
        else:
            written.append(argument(args[name], types))
    if row.style == "method":
        return f"{written[0]}.{row.name}({', '.join(written[1:])})"
    return f"_{row.name}({', '.join(written)})"


def _subscript(index: Any, types: dict[str, Any]) -> str:
    if type(index) is not slice:
        return argument(index, types)
    parts = ["" if part is None else argument(part, types) for part in (index.start, index.stop, index.step)]
    return ":".join(parts if parts[2] else parts[:2])


def _signature(inputs: Sequence[InputVertex], types: dict[str, Any]) -> str:
    """The parameters of the generated forward. Fixed ones may be left out, where Python's syntax lets them."""
    written = ["self"]
    keywords = False
    for position, vertex in enumerate(inputs):
        if vertex.keyword and not keywords:
            written.append("*")
            keywords = True
        last = vertex.keyword or not any(not v.fixed and not v.keyword for v in inputs[position:])
        written.append(f"{vertex.name}={argument(vertex.fixed[0], types)}" if vertex.fixed and last else vertex.name)
    return ", ".join(written)


def generate(vertices: Sequence[Vertex], output: Any) -> tuple[str, dict[str, Any]]:
    """The source of ``forward``, and the names it needs besides `NAMESPACE`."""
    types: dict[str, Any] = {}
    last: dict[str, int] = {}
    for position, vertex in enumerate(vertices):
        for arg in walk_args(vertex_args(vertex)):
            if type(arg) is Ref:
                last[arg.vertex] = position
    for arg in walk_args(output):
        if type(arg) is Ref:
            last[arg.vertex] = len(vertices)
    dead: dict[int, list[str]] = {}
    for name, position in last.items():
        dead.setdefault(position, []).append(name)

    inputs = [vertex for vertex in vertices if isinstance(vertex, InputVertex)]
    lines = [f"def forward({_signature(inputs, types)}):"]
    lines += [
        f"    _check_fixed({vertex.name}, {argument(vertex.fixed[0], types)}, {vertex.name!r})"
        for vertex in inputs
        if vertex.fixed
    ]
    for position, vertex in enumerate(vertices):
        if isinstance(vertex, InputVertex):
            continue
        if isinstance(vertex, ModuleVertex):
            args = [argument(a, types) for a in vertex.args]
            args += [f"{name}={argument(a, types)}" for name, a in vertex.kwargs.items()]
            line = f"{vertex.name} = {submodule(vertex.target)}({', '.join(args)})"
        elif OPERATORS[vertex.operator].effect:
            line = _call(vertex, types)
        else:
            line = f"{vertex.name} = {_call(vertex, types)}"
        if isinstance(vertex, OperatorVertex) and vertex.training_only:
            flag = f"{submodule(vertex.owner)}.training"
            line = f"if {flag}: {line}" if OPERATORS[vertex.operator].effect else f"{line} if {flag} else None"
        if position in dead and not line.startswith("if "):
            line = f"{line}; del {', '.join(dead[position])}"
        lines.append("    " + line)
    lines.append(f"    return {argument(output, types)}")
    return "\n".join(lines) + "\n", types


_compiled = 0


def compile_forward(source: str, types: dict[str, Any]) -> Any:
    """Compile a generated forward; tracebacks and `inspect` find its source."""
    global _compiled
    _compiled += 1
    filename = f"<torchorbit graph {_compiled}>"
    scope: dict[str, Any] = {**NAMESPACE, **types}
    exec(compile(source, filename, "exec"), scope)
    linecache.cache[filename] = (len(source), None, source.splitlines(keepends=True), filename)
    return scope["forward"]
