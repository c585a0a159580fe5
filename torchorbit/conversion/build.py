"""From a reconciled recording to a `DagModule` nested like the source model."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from torchorbit.arguments import Attr, ByMode, Expr, Ref, SameDevice, SameDtype, Size, map_args, walk_args
from torchorbit.conversion.reconcile import Item, Reconciled
from torchorbit.conversion.recorder import ASSIGN, CHECK, MODULE, ModuleCall, Value, function_name
from torchorbit.errors import ConversionError
from torchorbit.graph import codegen
from torchorbit.graph.dag import Container, DagModule, Graph, Provenance, blank
from torchorbit.graph.vertices import InputVertex, ModuleVertex, OperatorVertex, Vertex, vertex_args
from torchorbit.operators import binding as canonical
from torchorbit.operators.modules import leaf_name
from torchorbit.operators.spelling import UnknownOperatorError
from torchorbit.operators.table import LEAVES, OPERATORS

# Operators made of nothing but Python values; they are made on the device of the run.
_FACTORIES = {name for name, row in OPERATORS.items() if "device" in row.parameters and "input" not in row.parameters}
# A leaf whose class overrides its base's forward but calls the same function with its own attributes.
_FUNCTIONAL_LEAVES: dict[str, tuple[type[nn.Module], tuple[str, ...]]] = {
    leaf.operator: (leaf.cls, (*leaf.tensors, *leaf.attributes)) for leaf in LEAVES.values() if leaf.complete
}


def map_values(arg: Any, change: Callable[[Any], Any]) -> Any:
    """`map_args` for arguments in which tensors are `Value`s."""
    kind = type(arg)
    if kind is Value or kind is Attr:
        return change(arg)
    if kind is tuple:
        return tuple([map_values(a, change) for a in arg])
    if kind is list:
        return [map_values(a, change) for a in arg]
    if kind is dict:
        return {key: map_values(a, change) for key, a in arg.items()}
    if kind is slice:
        return slice(map_values(arg.start, change), map_values(arg.stop, change), map_values(arg.step, change))
    if kind is Size:
        return Size(map_values(arg.value, change), arg.dim)
    if kind is Expr:
        return Expr(arg.operator, tuple([map_values(a, change) for a in arg.operands]))
    if kind is ByMode:
        return ByMode(map_values(arg.training, change), map_values(arg.evaluation, change), arg.owner)
    if kind is SameDevice:
        return SameDevice(map_values(arg.value, change))
    if kind is SameDtype:
        return SameDtype(map_values(arg.value, change))
    if isinstance(arg, tuple):
        return type(arg)(*[map_values(a, change) for a in arg])
    return arg


@dataclasses.dataclass(slots=True)
class _Bound:
    """A step with its operator known, in the scope in which it will stand."""

    number: int
    call: ModuleCall
    args: dict[str, Any]
    operator: str | None  # None: a module
    module: nn.Module | None = None
    path: str = ""
    training_only: bool = False
    leaf: str | None = None
    shape: Any = None

    def values(self) -> Iterable[Any]:
        return walk_args(tuple(self.args.values()))


@dataclasses.dataclass(slots=True)
class _Scope:
    """A module call that becomes a block, with what it holds."""

    call: ModuleCall
    path: str
    parent: _Scope | None
    content: list[_Bound | _Scope] = dataclasses.field(default_factory=list)
    depth: int = 0
    inputs: dict[Value | Attr, None] = dataclasses.field(default_factory=dict)
    outputs: dict[Value, None] = dataclasses.field(default_factory=dict)


def build(
    model: nn.Module,
    recording: Reconciled,
    paths: Mapping[int, list[str]],
    provenance: Provenance,
    follows: Value | Attr | None,
) -> DagModule:
    """Build the graph.

    Args:
        model: the source; its leaf modules and parameters become part of the graph.
        recording: what it does.
        paths: id of every submodule -> all its paths.
        provenance: kept on the result.
        follows: the tensor whose device and dtype stand for those of the run.

    Raises:
        ConversionError: a function of the model is not in the table of operators.
    """
    bound = [_bind(item, follows) for item in recording.items]
    bound, recording.output = _cut_gradients(bound, recording.items, recording.output)
    bound = _without_dead(bound, recording.output)
    blocks = _Blocks(model, bound, recording, paths)
    return blocks.assemble(provenance)


# -- binding


def _bind(item: Item, follows: Value | Attr | None) -> _Bound:
    step = item.step
    # What only training does was recorded at other sizes; a number has none.
    shape = None if item.training_only and step.shape != torch.Size() else step.shape
    if step.function is MODULE:
        args = {str(n): a for n, a in enumerate(item.args)} | item.kwargs
        return _Bound(
            item.number, item.call, args, None, step.module, step.path or "", item.training_only, step.leaf, shape
        )
    if step.function is ASSIGN:
        args = {"target": item.args[0], "value": item.args[1]}
        return _Bound(item.number, item.call, args, "assign", training_only=item.training_only)
    if step.function is CHECK:
        message = "the model was recorded with other sizes, for which it takes another path here"
        return _Bound(item.number, item.call, {"condition": item.args[0], "message": message}, "check")
    rank = len(step.shape) if isinstance(step.shape, torch.Size) else None
    try:
        operator, args = canonical.bind(step.function, item.args, item.kwargs, rank)
    except UnknownOperatorError as error:
        name = function_name(step.function)
        reason = f"{error} is not in the table of operators; list the class of its module in atomic to keep it whole"
        raise ConversionError("build", step.call.where(), name, reason) from error
    if operator in _FACTORIES and "device" not in args and follows is not None:
        args["device"] = SameDevice(follows)
    return _Bound(item.number, item.call, args, operator, training_only=item.training_only, shape=shape)


def _cut_gradients(bound: list[_Bound], items: list[Item], output: Any) -> tuple[list[_Bound], Any]:
    """Where the source computes under ``torch.no_grad()``, detach what leaves that region."""
    inside = {item.number for item in items if item.step.no_grad and item.step.function not in (ASSIGN, CHECK)}
    if not inside:
        return bound, output
    fresh: dict[Value, Value] = {}
    result: list[_Bound] = []
    free = max(b.number for b in bound) + 1
    made = {b.number: b for b in bound}

    def cut(arg: Any, call: ModuleCall) -> Any:
        for value in walk_args(arg):
            if isinstance(value, Value) and value.step in inside and value not in fresh:
                fresh[value] = Value(free + len(fresh))
                only = made[value.step].training_only
                result.append(_Bound(fresh[value].step, call, {"input": value}, "detach", training_only=only))
        return map_values(arg, lambda v: fresh.get(v, v))

    for step in bound:
        if step.number not in inside and step.operator not in ("assign", "check"):
            step.args = cut(step.args, step.call)
        result.append(step)
    root = bound[0].call
    while root.parent is not None:
        root = root.parent
    return result, cut(output, root)


def _without_dead(bound: list[_Bound], output: Any) -> list[_Bound]:
    """Leave out steps that nothing uses. Checks of sizes do not keep a step alive."""
    alive = {value.step for value in walk_args(output) if isinstance(value, Value)}
    kept: list[_Bound] = []
    checks: list[_Bound] = []
    for step in reversed(bound):
        if step.operator == "check":
            checks.append(step)
            kept.append(step)
        elif step.number in alive or step.operator == "assign":
            alive.update(value.step for value in step.values() if isinstance(value, Value))
            kept.append(step)
    kept.reverse()

    def possible(step: _Bound) -> bool:
        return all(value.step in alive or value.step < 0 for value in step.values() if isinstance(value, Value))

    return [step for step in kept if step.operator != "check" or possible(step)]


# -- blocks


def _inside(path: str, scope: str) -> str | None:
    """``path`` relative to ``scope``, or None when it is not below it."""
    if not scope:
        return path
    if path.startswith(scope + "."):
        return path[len(scope) + 1 :]
    return None


class _Blocks:
    def __init__(self, model: nn.Module, bound: list[_Bound], recording: Reconciled, paths: Mapping[int, list[str]]):
        self.model = model
        self.bound = bound
        self.recording = recording
        self.paths = paths
        self.graphs: dict[str, Graph] = {}  # path -> graph of the block there
        self.defined: dict[int, _Scope] = {}  # number of a step -> scope that holds it
        self.dissolved: set[ModuleCall] = set()
        self.calls: dict[int, list[_Scope]] = {}  # id of a module -> the scopes of its calls

    def assemble(self, provenance: Provenance) -> DagModule:
        """Group steps into scopes; scopes that cannot stand alone are dissolved into the one around them."""
        while True:
            self.graphs = {}
            root = self.scopes()
            self.collapse(root)
            again = self.misplaced(root)
            if again:
                self.dissolved |= again
                continue
            self.flow(root)
            graph, again = self.emit(root)
            if again:
                self.dissolved |= again
                continue
            assert graph is not None
            return self.mirror(graph, provenance)

    def scopes(self) -> _Scope:
        root_call = self.bound[0].call if self.bound else ModuleCall(self.model, "", None)
        while root_call.parent is not None:
            root_call = root_call.parent
        root = _Scope(root_call, "", None)
        made: dict[int, _Scope] = {id(root_call): root}
        self.calls = {}

        def scope_of(call: ModuleCall) -> _Scope:
            scope = made.get(id(call))
            if scope is None:
                if call.parent is None:
                    return root
                outer = scope_of(call.parent)
                path = None if call in self.dissolved else self.path_below(call.module, outer.path)
                if path is None:
                    scope = outer
                else:
                    scope = _Scope(call, path, outer, depth=outer.depth + 1)
                    outer.content.append(scope)
                    self.calls.setdefault(id(call.module), []).append(scope)
                made[id(call)] = scope
            return scope

        self.defined = {}
        for step in self.bound:
            scope = scope_of(step.call)
            scope.content.append(step)
            self.defined[step.number] = scope
        return root

    def collapse(self, scope: _Scope) -> None:
        """Put what a block of one step holds in its place."""
        content: list[_Bound | _Scope] = []
        for inner in scope.content:
            if isinstance(inner, _Scope):
                self.collapse(inner)
                if self.transparent(inner):
                    only = inner.content[0]
                    assert isinstance(only, _Bound)
                    self.defined[only.number] = scope
                    inner = only
            content.append(inner)
        scope.content = content

    def path_below(self, module: nn.Module, scope: str) -> str | None:
        for path in self.paths.get(id(module), ()):
            if path and _inside(path, scope) is not None:
                return path
        return None

    def misplaced(self, scope: _Scope) -> set[ModuleCall]:
        """Calls of modules that use a module from outside of themselves."""
        found: set[ModuleCall] = set()
        for content in scope.content:
            if isinstance(content, _Scope):
                found |= self.misplaced(content)
            elif content.operator is None and content.module is not None:
                if self.path_below(content.module, scope.path) is None:
                    found.add(scope.call)
            elif content.operator == "assign" and _inside(content.args["target"].path, scope.path) is None:
                found.add(scope.call)
        return found

    def attr_below(self, attr: Attr, scope: str) -> Attr | None:
        """A parameter relative to a scope, by any of the paths of the module that holds it."""
        inner = _inside(attr.path, scope)
        if inner is not None:
            return Attr(inner)
        owner, _, name = attr.path.rpartition(".")
        try:
            module = self.model.get_submodule(owner)
        except AttributeError:
            return None
        path = self.path_below(module, scope)
        return None if path is None else Attr(f"{_inside(path, scope)}.{name}")

    # -- which values cross which borders

    def flow(self, root: _Scope) -> None:
        def use(value: Any, scope: _Scope) -> None:
            if isinstance(value, Value):
                home = self.defined.get(value.step, root) if value.step >= 0 else root
                inner: _Scope | None = scope
                outer: _Scope | None = home
                while inner is not outer:
                    assert inner is not None
                    assert outer is not None
                    if inner.depth >= outer.depth:
                        inner.inputs.setdefault(value)
                        inner = inner.parent
                    else:
                        outer.outputs.setdefault(value)
                        outer = outer.parent
            elif isinstance(value, Attr):
                inner = scope
                while inner is not None and self.attr_below(value, inner.path) is None:
                    inner.inputs.setdefault(value)
                    inner = inner.parent

        def visit(scope: _Scope) -> None:
            for content in scope.content:
                if isinstance(content, _Scope):
                    visit(content)
                else:
                    for value in content.values():
                        use(value, scope)

        visit(root)
        for value in walk_args(self.recording.output):
            use(value, root)

    # -- vertices

    def emit(self, root: _Scope) -> tuple[Graph | None, set[ModuleCall]]:
        names = _Names()
        inputs: list[Vertex] = []
        known: dict[Value | Attr, Any] = {}
        for position, (name, frozen, keyword) in enumerate(self.recording.inputs):
            fixed = () if any(isinstance(a, Value) for a in walk_args(frozen)) else (frozen,)
            inputs.append(InputVertex(names.parameter(name), keyword, fixed))
            known[Value(-1 - position)] = Ref(inputs[-1].name)
        vertices, shapes, again = self.block(root, names, known)
        if again:
            return None, again
        shapes.update(zip([vertex.name for vertex in inputs], self.recording.input_shapes, strict=True))
        output = map_values(self.recording.output, lambda v: self.resolve(v, root, known))
        return Graph((*inputs, *vertices), output, shapes), set()

    def resolve(self, value: Any, scope: _Scope, known: dict[Value | Attr, Any]) -> Any:
        found = known.get(value)
        if found is not None:
            return found
        if isinstance(value, Attr):
            attr = self.attr_below(value, scope.path)
            assert attr is not None
            return attr
        base = known[Value(value.step)]
        return Ref(base.vertex, (*base.index, *value.index))

    def block(
        self, scope: _Scope, names: _Names, known: dict[Value | Attr, Any]
    ) -> tuple[list[Vertex], dict[str, Any], set[ModuleCall]]:
        vertices: list[Vertex] = []
        shapes: dict[str, Any] = {}
        dissolve: set[ModuleCall] = set()

        def resolved(value: Any) -> Any:
            return self.resolve(value, scope, known)

        def relative(owner: str) -> str:
            return self.flag_owner(owner, scope)

        for content in scope.content:
            if isinstance(content, _Scope):
                dissolve |= self.nested(content)
                target = _inside(content.path, scope.path)
                assert target is not None
                name = names.value(target.replace(".", "_"))
                vertices.append(ModuleVertex(name, target, tuple([resolved(value) for value in content.inputs])))
                outputs = list(content.outputs)
                for position, value in enumerate(outputs):
                    known[value] = Ref(name) if len(outputs) == 1 else Ref(name, (position,))
                continue
            args = {
                key: map_args(map_values(arg, resolved), lambda value: value, relative)
                for key, arg in content.args.items()
            }
            if content.operator is None:
                assert content.module is not None
                path = self.path_below(content.module, scope.path)
                assert path is not None
                target = _inside(path, scope.path) or ""
                name = names.value(target.replace(".", "_"))
                positional = tuple([arg for key, arg in args.items() if key.isdigit()])
                keywords = {key: arg for key, arg in args.items() if not key.isdigit()}
                vertices.append(ModuleVertex(name, target, positional, keywords, content.leaf or ""))
            else:
                name = names.value(content.operator)
                flag = self.flag_owner(content.call.where(), scope) if content.training_only else ""
                vertices.append(OperatorVertex(name, content.operator, args, content.training_only, flag))
            known[Value(content.number)] = Ref(name)
            if content.shape is not None:
                shapes[name] = content.shape
        return vertices, shapes, dissolve

    def flag_owner(self, path: str, scope: _Scope) -> str:
        """The module whose training flag decides, relative to a scope; the scope itself where there is none."""
        return "" if path == scope.path else _inside(path, scope.path) or ""

    def nested(self, scope: _Scope) -> set[ModuleCall]:
        """Make the graph of a block. Returns the calls that must be dissolved before there can be one."""
        names = _Names()
        known: dict[Value | Attr, Any] = {}
        arguments = {value: name for name, value in scope.call.arguments if value is not None}
        scope.inputs = dict.fromkeys(
            [value for value in arguments if value in scope.inputs]
            + [value for value in scope.inputs if value not in arguments]
        )
        inputs: list[Vertex] = []
        for value in scope.inputs:
            name = arguments.get(value) or (value.path.split(".")[-1] if isinstance(value, Attr) else "x")
            inputs.append(InputVertex(names.parameter(name)))
            known[value] = Ref(inputs[-1].name)
        vertices, shapes, again = self.block(scope, names, known)
        results = [self.resolve(value, scope, known) for value in scope.outputs]
        graph = Graph((*inputs, *vertices), results[0] if len(results) == 1 else tuple(results), shapes)
        earlier = self.graphs.get(scope.path)
        if earlier == graph and earlier.shapes != shapes:
            graph = dataclasses.replace(graph, shapes={})  # called twice, with other sizes
        if earlier is not None and earlier != graph:
            again.add(scope.call)
        else:
            self.graphs[scope.path] = graph
        return again

    def transparent(self, scope: _Scope) -> bool:
        """A block of one operator without state of its own is that operator: an activation, say."""
        if len(scope.content) != 1 or isinstance(scope.content[0], _Scope):
            return False
        only = scope.content[0]
        if only.operator is None and only.module is scope.call.module:
            return True
        state = any(True for _ in scope.call.module.parameters()) or any(True for _ in scope.call.module.buffers())
        if not state:
            return only.operator is not None
        # The module is a vertex in all of its calls, or a block in all of them.
        if not all(self.is_leaf(call) for call in self.calls[id(scope.call.module)]):
            return False
        base, _ = _FUNCTIONAL_LEAVES[only.operator or ""]
        only.operator = None
        only.module = scope.call.module
        only.leaf = base.__name__
        only.args = {"0": only.args["input"]}
        return True

    def is_leaf(self, scope: _Scope) -> bool:
        """A subclass of a leaf class that calls its base's function with its own attributes is that leaf."""
        module = scope.call.module
        only = scope.content[0] if len(scope.content) == 1 else None
        if not isinstance(only, _Bound):
            return False
        if only.operator is None:
            return only.module is module
        base, names = _FUNCTIONAL_LEAVES.get(only.operator, (None, ()))
        if base is None or not isinstance(module, base) or module._modules or module._forward_hooks:
            return False
        if module._forward_pre_hooks or set(only.args) - {"input", *names}:
            return False
        if type(module).__call__ is not nn.Module.__call__:  # what it does around its forward is recorded, too
            return False
        if getattr(module, "padding_mode", "zeros") != "zeros":  # its base would have padded with something else
            return False
        # It takes what its base takes, and returns what that returns.
        call = scope.call
        if not call.unary or [value for _, value in call.arguments] != [only.args["input"]]:
            return False
        if call.result != Value(only.number):
            return False
        defaults = OPERATORS[only.operator].parameters
        for name in names:
            value = getattr(module, name)
            given = only.args.get(name, defaults.get(name))
            if isinstance(value, Tensor):
                if given != Attr(f"{scope.path}.{name}"):
                    return False
            elif (tuple(given) if isinstance(given, list) else given) != value:
                return False
        return True

    # -- modules

    def mirror(self, graph: Graph, provenance: Provenance) -> DagModule:
        """A tree of modules with the paths of the source, blocks and leaves where vertices call them."""
        called: set[str] = set()
        for path, block in {"": graph, **self.graphs}.items():
            for vertex in block.vertices:
                if isinstance(vertex, ModuleVertex):
                    called.add(f"{path}.{vertex.target}" if path else vertex.target)
        owners = {
            f"{path}.{owner}" if path else owner for path, block in self.graphs.items() for owner in _owners(block)
        }
        owners.update(_owners(graph))
        made: dict[int, nn.Module | None] = {}

        def copy(source: nn.Module, path: str) -> nn.Module | None:
            if id(source) in made:
                return made[id(source)]
            all_paths = self.paths[id(source)]
            if any(p in called and p not in self.graphs for p in all_paths):
                made[id(source)] = source
                return source
            block = next((self.graphs[p] for p in all_paths if p in self.graphs), graph if path == "" else None)
            if block is None and leaf_name(source) is not None and (source._parameters or source._buffers):
                made[id(source)] = source
                return source
            target: nn.Module = Container() if block is None else blank(block, provenance if path == "" else None)
            made[id(source)] = target
            children = {}
            for name, child in source._modules.items():
                if child is not None:
                    inner = copy(child, f"{path}.{name}" if path else name)
                    if inner is not None:
                        children[name] = inner
            target._modules.update(children)
            target._parameters.update(source._parameters)
            target._buffers.update(source._buffers)
            target._non_persistent_buffers_set = set(source._non_persistent_buffers_set)
            target.training = source.training
            stateless = not source._parameters and not source._buffers and not any(p in owners for p in all_paths)
            if block is None and not children and stateless:
                made[id(source)] = None
                return None
            return target

        dag = copy(self.model, "")
        assert isinstance(dag, DagModule)
        for name, tensor in self.recording.constants.items():
            dag.register_buffer(name, tensor, persistent=False)
        return dag


def _owners(graph: Graph) -> set[str]:
    """Paths of the modules whose training flag a graph reads."""
    found = {v.owner for v in graph.vertices if isinstance(v, OperatorVertex) and v.training_only}

    def note(owner: str) -> str:
        found.add(owner)
        return owner

    for vertex in graph.vertices:
        map_args(vertex_args(vertex), lambda value: value, note)
    map_args(graph.output, lambda value: value, note)
    return found - {""}


class _Names:
    """Names of the vertices of one block."""

    def __init__(self) -> None:
        self.taken: set[str] = set()
        self.counts: dict[str, int] = {}

    def parameter(self, wanted: str) -> str:
        """A name for an input: the wanted one, with underscores behind it where it is taken."""
        name = _identifier(wanted)
        while name in self.taken or not codegen.is_valid_name(name):
            name += "_"
        self.taken.add(name)
        return name

    def value(self, wanted: str) -> str:
        """A name for a vertex: the wanted one, with a number behind it where it is taken."""
        wanted = _identifier(wanted)
        count = self.counts.get(wanted, 0)
        name = wanted if not count else f"{wanted}_{count}"
        while name in self.taken or not codegen.is_valid_name(name):
            count += 1
            name = f"{wanted}_{count}"
        self.counts[wanted] = count + 1
        self.taken.add(name)
        return name


def _identifier(wanted: str) -> str:
    """A plain identifier like ``wanted``."""
    name = re.sub("[^A-Za-z0-9_]", "_", wanted)
    if name.startswith("__") or not name.strip("_"):
        name = name.strip("_") or "x"
    return f"_{name}" if name[0].isdigit() else name
