"""Which module calls become blocks, what they hold, and which values cross their borders."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from torchorbit.arguments import Attr, walk_args
from torchorbit.conversion.binding import BoundStep
from torchorbit.conversion.recording import ModuleCall, Value
from torchorbit.operators.table import LEAVES, OPERATORS

# A leaf whose class overrides its base's forward but calls the same function with its own attributes.
_FUNCTIONAL_LEAVES: dict[str, tuple[type[nn.Module], tuple[str, ...]]] = {
    leaf.operator: (leaf.cls, (*leaf.tensors, *leaf.attributes)) for leaf in LEAVES.values() if leaf.complete
}


@dataclasses.dataclass(slots=True)
class Scope:
    """A module call that becomes a block, with what it holds."""

    call: ModuleCall
    path: str
    parent: Scope | None
    content: list[BoundStep | Scope] = dataclasses.field(default_factory=list)
    depth: int = 0
    inputs: dict[Value | Attr, None] = dataclasses.field(default_factory=dict)
    outputs: dict[Value, None] = dataclasses.field(default_factory=dict)


def inside(path: str, scope: str) -> str | None:
    """``path`` relative to ``scope``, or None when it is not below it."""
    if not scope:
        return path
    if path.startswith(scope + "."):
        return path[len(scope) + 1 :]
    return None


class Hierarchy:
    """Steps grouped by the calls of modules that made them.

    Args:
        model: the source.
        bound: the steps.
        paths: id of every submodule -> all its paths.
        dissolved: calls whose steps go to the scope around them.

    Attributes:
        root: the scope of the model itself.
    """

    def __init__(
        self,
        model: nn.Module,
        bound: list[BoundStep],
        paths: Mapping[int, list[str]],
        dissolved: set[ModuleCall],
    ):
        self._model = model
        self._bound = bound
        self._paths = paths
        self._dissolved = dissolved
        self._defined: dict[int, Scope] = {}  # number of a step -> scope that holds it
        self._calls: dict[int, list[Scope]] = {}  # id of a module -> the scopes of its calls
        self.root = self._scopes()
        self._collapse(self.root)

    def _scopes(self) -> Scope:
        root_call = self._bound[0].call if self._bound else ModuleCall(self._model, "", None)
        while root_call.parent is not None:
            root_call = root_call.parent
        root = Scope(root_call, "", None)
        made: dict[int, Scope] = {id(root_call): root}
        # A module that is a leaf in another call, as one that is given other weights in this one, can be no block.
        leaves = {id(step.module) for step in self._bound if step.operator is None}

        def scope_of(call: ModuleCall) -> Scope:
            scope = made.get(id(call))
            if scope is None:
                if call.parent is None:
                    return root
                outer = scope_of(call.parent)
                whole = call not in self._dissolved and id(call.module) not in leaves
                path = self.path_below(call.module, outer.path) if whole else None
                if path is None:
                    scope = outer
                else:
                    scope = Scope(call, path, outer, depth=outer.depth + 1)
                    outer.content.append(scope)
                    self._calls.setdefault(id(call.module), []).append(scope)
                made[id(call)] = scope
            return scope

        for step in self._bound:
            scope = scope_of(step.call)
            scope.content.append(step)
            self._defined[step.number] = scope
        return root

    def _collapse(self, scope: Scope) -> None:
        """Put what a block of one step holds in its place."""
        content: list[BoundStep | Scope] = []
        for inner in scope.content:
            if isinstance(inner, Scope):
                self._collapse(inner)
                if self._transparent(inner):
                    only = inner.content[0]
                    assert isinstance(only, BoundStep)
                    self._defined[only.number] = scope
                    inner = only
            content.append(inner)
        scope.content = content

    def path_below(self, module: nn.Module, scope: str) -> str | None:
        """The first path of a module that is below a scope."""
        for path in self._paths.get(id(module), ()):
            if path and inside(path, scope) is not None:
                return path
        return None

    def misplaced(self, scope: Scope | None = None) -> set[ModuleCall]:
        """Calls of modules that use a module from outside of themselves."""
        scope = self.root if scope is None else scope
        found: set[ModuleCall] = set()
        for content in scope.content:
            if isinstance(content, Scope):
                found |= self.misplaced(content)
            elif content.operator is None and content.module is not None:
                if self.path_below(content.module, scope.path) is None:
                    found.add(scope.call)
            elif content.operator == "assign" and inside(content.args["target"].path, scope.path) is None:
                found.add(scope.call)
        return found

    def attr_below(self, attr: Attr, scope: str) -> Attr | None:
        """A parameter relative to a scope, by any of the paths of the module that holds it."""
        inner = inside(attr.path, scope)
        if inner is not None:
            return Attr(inner)
        owner, _, name = attr.path.rpartition(".")
        try:
            module = self._model.get_submodule(owner)
        except AttributeError:
            return None
        path = self.path_below(module, scope)
        return None if path is None else Attr(f"{inside(path, scope)}.{name}")

    def flow(self, output: Any) -> None:
        """Note in every scope which values come into it and which leave it.

        Args:
            output: what the model returns.
        """
        root = self.root

        def use(value: Any, scope: Scope) -> None:
            if isinstance(value, Value):
                home = self._defined.get(value.step, root) if value.step >= 0 else root
                inner: Scope | None = scope
                outer: Scope | None = home
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

        def visit(scope: Scope) -> None:
            for content in scope.content:
                if isinstance(content, Scope):
                    visit(content)
                else:
                    for value in content.values():
                        use(value, scope)

        visit(root)
        for value in walk_args(output):
            use(value, root)

    def _transparent(self, scope: Scope) -> bool:
        """A block of one operator without state of its own is that operator: an activation, say."""
        if len(scope.content) != 1 or isinstance(scope.content[0], Scope):
            return False
        only = scope.content[0]
        if only.operator is None and only.module is scope.call.module:
            return True
        state = any(True for _ in scope.call.module.parameters()) or any(True for _ in scope.call.module.buffers())
        if not state:
            return only.operator is not None
        # The module is a vertex in all of its calls, or a block in all of them.
        if not all(self._is_leaf(call) for call in self._calls[id(scope.call.module)]):
            return False
        base, _ = _FUNCTIONAL_LEAVES[only.operator or ""]
        only.operator = None
        only.module = scope.call.module
        only.leaf = base.__name__
        only.args = {"0": only.args["input"]}
        return True

    def _is_leaf(self, scope: Scope) -> bool:
        """A subclass of a leaf class that calls its base's function with its own attributes is that leaf."""
        module = scope.call.module
        only = scope.content[0] if len(scope.content) == 1 else None
        if not isinstance(only, BoundStep):
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
