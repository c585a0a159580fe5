"""Run a model once on meta tensors and write down what it does.

A `TorchFunctionMode` sees every torch function that the model calls, and ``nn.Module.__call__`` is intercepted so
that leaf modules are one step each. Python's control flow just runs. Nothing is computed: parameters, buffers and
inputs are swapped for meta tensors while the model runs and put back afterwards.
"""

from __future__ import annotations

import copy
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from torchorbit.arguments import Attr, walk_args
from torchorbit.containers import items_of, leaves_of, map_leaves, map_placed, placed_leaves, rebuilt
from torchorbit.conversion import shapes
from torchorbit.conversion.lines import line_of, line_running
from torchorbit.conversion.memory import Memory
from torchorbit.conversion.numbers import Traced, plain, traced
from torchorbit.conversion.parts import OF_MEMORY, parts_of
from torchorbit.conversion.patching import meta_twin, patched, swapped
from torchorbit.conversion.preserving import Snapshot, preserved, takes_place
from torchorbit.conversion.questions import QUESTIONS, SHAPED_BY_VALUES, Questions
from torchorbit.conversion.reaching import Change
from torchorbit.conversion.recording import (
    ALIAS,
    ASSIGN,
    MODULE,
    Answer,
    Comparison,
    ModuleCall,
    Recording,
    Step,
    Value,
    function_name,
    writes_in_place,
)
from torchorbit.conversion.repeating import Numbering, parted_at, plain_numbers, random_states, reason_of
from torchorbit.conversion.settings import kept_settings
from torchorbit.conversion.uniform import Bound, Uniforms
from torchorbit.errors import ConversionError
from torchorbit.graph.shapes import shapes_in
from torchorbit.interrupts import interruptible
from torchorbit.operators.binding import is_composite, is_known
from torchorbit.operators.modules import leaf_name
from torchorbit.operators.table import LEAVES
from torchorbit.records import record_of

_META = torch.device("meta")

# What these return is no tensor and takes part in no computation. Sizes are handled apart.
_COUNTS = {Tensor.numel, Tensor.nelement, torch.numel}
_SIZE_READS = {Tensor.shape.__get__, Tensor.size}  # type: ignore[attr-defined]
_PLAIN_READS = {
    getattr(Tensor, name).__get__
    for name in (
        "dtype", "device", "ndim", "requires_grad", "is_cuda", "is_cpu", "is_meta", "layout", "is_leaf", "grad",
        "grad_fn", "is_sparse", "is_quantized", "is_mps", "is_xpu", "is_nested", "names", "itemsize", "nbytes",
        "_version", "_base", "output_nr", "is_mkldnn", "is_vulkan", "is_xla", "is_mtia", "is_ipu", "is_maia",
    )
    if hasattr(Tensor, name)
} | {
    getattr(Tensor, name)
    for name in ("dim", "ndimension", "is_floating_point", "is_complex", "is_contiguous", "stride", "element_size",
                 "get_device", "storage_offset", "is_conj", "is_neg", "is_signed", "requires_grad_", "is_inference",
                 "__repr__", "__format__", "__hash__", "data_ptr", "is_shared", "retain_grad", "register_hook")
} | {torch.is_floating_point, torch.is_complex, torch.is_tensor, torch._assert}  # fmt: skip

# Made of nothing but Python values: they must be told to be on meta while recording.
_FACTORIES = {
    getattr(torch, name)
    for name in ("arange", "linspace", "logspace", "eye", "zeros", "ones", "empty", "full", "rand", "randn", "randint",
                 "randperm", "tril_indices", "triu_indices", "hann_window", "hamming_window", "scalar_tensor",
                 "blackman_window", "bartlett_window", "kaiser_window")
}  # fmt: skip
_LITERALS = {torch.tensor, torch.as_tensor, torch.asarray}
_DEVICE_MOVES = {Tensor.to, Tensor.cpu, Tensor.cuda}
_IGNORED = {
    torch._C._set_grad_enabled,
    torch._assert_async,
    torch.ops.profiler._record_function_enter_new.default,
    torch.ops.profiler._record_function_exit._RecordFunction,
}

# What a tensor held before does not matter to these.
_OVERWRITING = {"zero_", "fill_", "copy_", "normal_", "uniform_", "bernoulli_", "random_"}
_LEAVE_OUT = "leave it out, where the model has an option for that (as use_cache=False)"
_RETURN = "return a tuple, a list, a dict or a data class of tensors instead"

_PYTHON_CONSTANTS = {
    int, float, bool, str, complex, type(None), type(Ellipsis), torch.dtype, torch.memory_format, torch.layout,
}  # fmt: skip


# So often at most a model runs again whose plain numbers change in every pass.
_PASSES = 4


class Recorder(TorchFunctionMode):
    """Records one run. Use `record`."""

    def __init__(self, model: nn.Module, paths: Mapping[int, str], atomic: tuple[type[nn.Module], ...]):
        super().__init__()
        self.paths = paths
        self.atomic = atomic
        self.steps: list[Step] = []
        self.values: dict[int, Value | Attr] = {}  # id of a meta tensor -> what it stands for
        self.alive: list[Any] = []  # ids are only unique among living objects
        self.constants: dict[str, Tensor] = {}
        self.constant_lines: dict[str, str | None] = {}
        self.known_constants: dict[int, Tensor] = {}  # id of a meta twin -> the tensor that hung on a module
        self.twins: dict[int, Tensor] = {}  # id of a parameter or buffer -> the meta tensor in its place
        self.originals: dict[int, Tensor] = {}  # and back
        self.checks: list[Comparison] = []
        self.answers: list[Answer] = []
        self.training_reads: dict[int, nn.Module] = {}
        self.memory = Memory(self)
        self.uniforms = Uniforms(self)
        self.inputs: list[Any] = []
        self.questions = Questions(self, ())
        self.attributes: dict[str, Tensor] = {}  # path of a parameter, buffer or constant -> its meta tensor
        self.state: dict[int, str] = {}  # storage of a parameter or buffer -> its path
        #: Modules, their dictionaries of parameters or of buffers, and what stands there for each.
        self.members: list[tuple[nn.Module, dict[str, Any], str, Tensor]] = []
        self.outside: dict[int, str] = {}  # storage of a constant that outlives the run -> its path
        self.changed: dict[str, ConversionError] = {}  # paths of those that were written into, and where
        self.unassigned: dict[str, None] = {}  # paths of parameters and buffers that were written into
        self.stack: list[ModuleCall] = [ModuleCall(model, "", None)]
        self.failed_in: str | None = None
        self.running: str | None = None  # what torch was asked for last, until it answers
        self.saw_traced = False
        self.told: tuple[str, ...] = ()
        self.inside_leaf = False  # what a leaf does inside is not recorded
        self.autocast = torch._C._is_any_autocast_enabled()
        self.thread = threading.get_ident()

    def go_on_from(self, earlier: Recorder) -> None:
        """Record a pass that comes after another one, whose results it may find on the model."""
        self.steps = list(earlier.steps)
        self.values = dict(earlier.values)
        self.alive = [earlier]
        self.inputs = list(earlier.inputs)
        self.constants, self.constant_lines = dict(earlier.constants), dict(earlier.constant_lines)
        self.known_constants, self.originals = dict(earlier.known_constants), dict(earlier.originals)
        self.attributes, self.outside = dict(earlier.attributes), dict(earlier.outside)

    # -- from Python objects to what is kept of them

    def freeze(self, arg: Any, instead: str = _LEAVE_OUT) -> Any:
        """An argument with every tensor replaced by what it stands for; ``instead`` says what to do if it cannot be."""
        kind = type(arg)
        if kind in _PYTHON_CONSTANTS:
            return arg
        if isinstance(arg, Tensor):
            return self.lookup(arg)
        if kind in Traced:
            self.saw_traced = True
            return arg
        if kind is tuple or kind is torch.Size:
            return tuple([self.freeze(a) for a in arg])
        if kind is list:
            return [self.freeze(a) for a in arg]
        if kind is torch.device:
            return arg
        items = items_of(arg)
        if items is not None:
            frozen = [self.freeze(a) for a in items]
            plain = isinstance(arg, tuple) and not hasattr(arg, "_fields")  # what torch calls a return type
            return tuple(frozen) if plain else rebuilt(arg, frozen)
        if isinstance(arg, (int, float)):  # an enumeration, or a number of numpy
            return float(arg) if isinstance(arg, float) else int(arg)
        if hasattr(arg, "item") and getattr(arg, "ndim", None) == 0:
            return arg.item()
        if isinstance(arg, range):
            return tuple(arg)
        raise self.error(
            f"a {kind.__module__}.{kind.__qualname__} is passed or returned where a tensor or a constant is expected; "
            f"{instead}"
        )

    def freeze_output(self, value: Any) -> Any:
        """What the model returns, with every tensor replaced by what it stands for; its classes are kept."""
        record = record_of(value)
        items = items_of(value) if record is None else record.held
        if items is None:
            return self.freeze(value, f"{_RETURN}, or {_LEAVE_OUT}")
        if record is None:
            self.refuse_class(value)
        frozen = [self.freeze_output(item) for item in items]
        return rebuilt(value, frozen) if record is None else record.holding(frozen)

    def refuse_class(self, value: Any) -> None:
        """Refuse a list or a mapping of a class that a graph does not make again."""
        kind = type(value)
        name = f"{kind.__module__}.{kind.__qualname__}"
        if kind is defaultdict:
            raise self.error(
                f"the model returns a {name} whose default is made by {value.default_factory!r}, which a graph does "
                "not hold; return a dict, or give it a default of list, dict, set, int or float"
            )
        if (isinstance(value, Mapping) and kind is not dict) or (isinstance(value, list) and kind is not list):
            raise self.error(f"the model returns a {name}, of which a graph would make a plain one; {_RETURN}")

    def lookup(self, tensor: Tensor) -> Value | Attr:
        """What a tensor stands for."""
        found = self.values.get(id(tensor))
        if found is None:
            found = self.capture(tensor)
        return self.memory.current(tensor, found) if self.memory.written else found

    def tensor_of(self, value: Value | Attr) -> Tensor | None:
        """The meta tensor for which a value was recorded."""
        if isinstance(value, Attr):
            return self.attributes.get(value.path)
        result = self.steps[value.step].result if value.step >= 0 else self.inputs[-1 - value.step]
        for place in value.index:
            result = result[place]
        return result if isinstance(result, Tensor) else None

    def capture(self, tensor: Tensor, *, made: bool = False) -> Attr:
        """A tensor that no step made: it hangs somewhere on the model, or in a closure, or was ``made`` of numbers."""
        twin = self.twins.get(id(tensor))
        if twin is not None and id(twin) in self.values:
            return self.values[id(twin)]  # type: ignore[return-value]
        source = self.known_constants.get(id(tensor))
        if source is None:
            if tensor.device.type == "meta":
                raise self.error("a tensor appears that no recorded step made; a scripted or compiled function?")
            source = tensor
        for name, known in self.constants.items():
            if known is source:
                attr = Attr(name)
                break
        else:
            number = len(self.constants)
            while hasattr(self.stack[0].module, f"_constant_{number}"):
                number += 1
            attr = Attr(f"_constant_{number}")
            self.constants[attr.path] = source
            self.constant_lines[attr.path] = line_running()
        self.values[id(tensor)] = attr
        self.attributes.setdefault(attr.path, tensor)
        self.alive.append(tensor)
        if not made:
            self.outside[tensor.untyped_storage()._cdata] = attr.path
        return attr

    def register(self, result: Any, index: tuple[int | str, ...] = ()) -> Any:
        """Give the tensors of a step's result their names."""
        if isinstance(result, Tensor):
            if id(result) in self.values:
                # The same object came back: it must not stand for two things.
                result = result.view_as(result) if result.device.type == "meta" else result.detach()
            self.values[id(result)] = Value(len(self.steps) - 1, index)
            self.alive.append(result)
            return result
        return result if items_of(result) is None else map_placed(self.register, result, index)

    def error(self, message: str, operator: str | None = None) -> ConversionError:
        """An error that says where the model is just now."""
        return ConversionError("record", self.stack[-1].where(), operator, message, line_running())

    # -- torch functions

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _SIZE_READS:
            return self.sizes(func, args, kwargs)
        if func in _PLAIN_READS:
            return func(*args, **kwargs)
        if func in _IGNORED:
            return None if func is torch._assert_async else func(*args, **kwargs)
        if func in _COUNTS:
            product: Any = 1
            for length in self.sizes(Tensor.size, args, {}):
                product = product * length
            return product
        name = getattr(func, "__name__", "")
        if name == "__set__" and func != Tensor.requires_grad.__set__:  # type: ignore[attr-defined]
            raise self.error("an attribute of a tensor is set, which a graph does not hold", function_name(func))
        if name == "_pack_padded_sequence":
            raise self.error(
                "a graph holds no packed sequences; give them padded, to a layer that is not told lengths",
                "pack_padded_sequence",
            )
        if name in QUESTIONS:
            return self.questions.answer(func, name, args, kwargs)
        if name in SHAPED_BY_VALUES or (name == "where" and len(args) + len(kwargs) == 1):
            return self.questions.computed(func, args, kwargs)
        if is_composite(func):
            return self.composite(func, args, kwargs)
        if name in OF_MEMORY:
            raise self.error(OF_MEMORY[name], name)
        others = parts_of(name)
        if others is not None:
            trial_args, trial_kwargs = map_leaves(_on_meta, (plain(args), plain(kwargs)))
            func(*trial_args, **trial_kwargs)  # it says so if it cannot be called like this
            with self:
                return others(*args, **kwargs)

        self.refuse_autocast(name)
        if func in _LITERALS and not _has_tensor((args, kwargs)):
            return self.questions.literal(func, args, kwargs)
        if func is Tensor.new_tensor and not _has_tensor((args[1:], kwargs)):
            return self.new_tensor(*args, **kwargs)

        if self.uniforms:
            args, kwargs = self.uniforms.without_masks(name, args, kwargs)
        if name == "__setitem__" and self.memory.unchanged_view(args[2], args[0], args[1]):
            # `x[0] += y` writes into a view and then puts the view where it came from.
            self.memory.forget(args[2])
        self.saw_traced = False
        out_argument = kwargs.pop("out", None)
        frozen_args = tuple([self.freeze(a) for a in args])
        frozen_kwargs = {key: self.freeze(a) for key, a in kwargs.items()} if kwargs else {}
        given = args, kwargs
        if self.saw_traced:
            args, kwargs = plain(args), plain(kwargs)

        in_place = writes_in_place(name, func, args, kwargs)
        target = out_argument
        if in_place and target is None:
            target = args[0] if args else next(iter(kwargs.values()))
        result = None
        if not in_place:
            result = shapes.function_result(func, args, kwargs)
        if result is None:
            self.running = function_name(func)
            try:
                result = self.run(func, args, kwargs)
            except RuntimeError as error:
                # A kernel that has no way to go on without the values of an operand.
                if "meta" not in str(error):
                    raise
                args, kwargs = self.questions.with_values(name, *given)
                frozen_args = tuple([self.freeze(a) for a in args])
                frozen_kwargs = {key: self.freeze(a) for key, a in kwargs.items()}
                result = self.run(func, plain(args), plain(kwargs))
            self.running = None
        if result is NotImplemented:
            return result
        if target is None and not _has_tensor(result):
            return result
        no_grad = not torch.is_grad_enabled()
        bound = self.bound_to_masks(func, frozen_args, frozen_kwargs, result)
        kept = None if bound is None else bound.operand(result, target)
        if kept is not None:
            if target is not None:
                return result if result is None else target  # nothing is written
            self.steps.append(Step(ALIAS, (kept,), {}, self.stack[-1], no_grad=no_grad, shape=shapes_in(result)))
            self.steps[-1].result = self.register(result)
            return self.steps[-1].result
        self.steps.append(Step(func, frozen_args, frozen_kwargs, self.stack[-1], no_grad=no_grad, line=line_running()))
        if isinstance(func, torch._ops.OpOverload) and not is_known(func):
            raise self.error(
                "it is a kernel, called by its own name; call the function of torch whose kernel it is", name
            )
        if target is not None:
            if name != "__setitem__" and any(t.dtype != target.dtype for t in leaves_of(Tensor, args)):
                # Written in place, a result has the dtype of what it is written into.
                self.steps[-1].shape = target.shape
                self.steps.append(Step(Tensor.to, (Value(len(self.steps) - 1), target.dtype), {}, self.stack[-1]))
            self.write(target)
            if bound is not None:
                self.uniforms.note(bound, Value(len(self.steps) - 1), target)
            return result if result is None else target
        step = self.steps[-1]
        step.shape = shapes_in(result)
        step.result = self.register(result)
        if bound is not None:
            self.uniforms.note(bound, Value(len(self.steps) - 1), step.result)
        return step.result

    def bound_to_masks(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> Bound | None:
        """A call that is given a tensor which follows from a mask that is true everywhere."""
        if not self.uniforms:
            return None
        with torch._C.DisableTorchFunction():
            return self.uniforms.bound(func, args, kwargs, result)

    def refuse_autocast(self, name: str) -> None:
        """Refuse what runs under autocast that the model itself turns on: which dtype it has depends on the device."""
        if not self.autocast and torch._C._is_any_autocast_enabled():
            raise self.error("it runs under autocast, which a graph does not hold; cast explicitly instead", name)

    def new_tensor(self, like: Tensor, data: Any, *, dtype: torch.dtype | None = None, **others: Any) -> Tensor:
        """Python numbers as a tensor of the dtype that another one has."""
        made = self.questions.literal(torch.tensor, (data,), {"dtype": dtype})
        if dtype is not None:
            return made
        with self:
            return made.type_as(like)

    def run(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call a torch function such that its result is on meta."""
        if func in _FACTORIES or (name := getattr(func, "__name__", "")).startswith("new_") or name.endswith("_like"):
            kwargs = {**kwargs, "device": _META}
        elif func in _DEVICE_MOVES:
            args, kwargs = _to_meta(func, args, kwargs)
            func = Tensor.to
        elif not all(a.device.type == "meta" for a in leaves_of(Tensor, (args, kwargs))):
            # Tensors from outside (numpy, closures) meet the recorded ones here.
            args, kwargs = self.on_meta(args), self.on_meta(kwargs)
        return func(*args, **kwargs)

    def on_meta(self, arg: Any) -> Any:
        """An argument with every tensor that is elsewhere replaced by one on meta."""

        def moved(leaf: Any) -> Any:
            if not isinstance(leaf, Tensor) or leaf.device.type == "meta":
                return leaf
            twin = meta_twin(leaf)
            self.values[id(twin)] = self.values[id(leaf)]
            self.alive.append(twin)
            path = self.outside.get(leaf.untyped_storage()._cdata)
            if path is not None:
                self.outside[twin.untyped_storage()._cdata] = path
            return twin

        return map_leaves(moved, arg)

    def write(self, target: Tensor) -> None:
        """The last step changed ``target``: from now on it stands for that step's result."""
        step = len(self.steps) - 1
        before = self.values.get(id(target))
        if not torch.is_grad_enabled() and self.has_gradient(target, before):
            raise self.error(
                "a result that has a gradient is written in place under torch.no_grad(), which its gradient would not "
                "see; write where gradients are on, or compute a new tensor",
                function_name(self.steps[-1].function),
            )
        self.values[id(target)] = Value(step)
        self.alive.append(target)
        self.steps[-1].shape = target.shape
        self.steps[-1].result = target
        self.memory.write(target, before, step)
        path = self.state.get(target.untyped_storage()._cdata)
        if path is not None:
            self.unassigned[path] = None
        path = self.outside.get(target.untyped_storage()._cdata)
        if path is not None and path not in self.changed:
            self.changed[path] = self.error(
                "a tensor that is neither a parameter nor a buffer is written in place, and what it held is read; "
                "a graph would not keep what is written until the next pass. Register it as a buffer",
                function_name(self.steps[step].function),
            )

    def has_gradient(self, target: Tensor, value: Value | Attr | None) -> bool:
        """Whether a result follows from parameters by steps that have gradients."""
        if not target.is_floating_point() or target.untyped_storage()._cdata in self.state:
            return False
        waiting, seen = [value], set()
        while waiting:
            value = waiting.pop()
            if isinstance(value, Attr):
                if isinstance(self.originals.get(id(self.attributes[value.path])), nn.Parameter):
                    return True
            elif value is not None and value.step >= 0 and value.step not in seen:
                seen.add(value.step)
                step = self.steps[value.step]
                if step.no_grad:
                    continue
                if step.module is not None and next(step.module.parameters(), None) is not None:
                    return True
                waiting += [arg for arg in walk_args((step.args, step.kwargs)) if isinstance(arg, (Value, Attr))]
        return False

    def sizes(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """``x.shape`` and ``x.size()``, with numbers that remember where they come from."""
        tensor = args[0]
        shape = tensor.shape
        stands_for = self.values.get(id(tensor))
        if type(stands_for) is Value:
            shape = torch.Size(
                [traced(length, "size", (stands_for, position)) for position, length in enumerate(shape)]
            )
        dim = args[1] if len(args) > 1 else kwargs.get("dim")
        return shape if dim is None else shape[dim]

    def composite(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Record what a Python function of torch does inside."""
        # It begins by asking whether a mode like this one wants to be called instead. Once, none does.
        names = func.__globals__
        asks = {name: value for name, value in names.items() if name.startswith("has_torch_function")}

        def none_does(*_: Any) -> bool:
            names.update(asks)
            return False

        names.update(dict.fromkeys(asks, none_does))
        try:
            with self:
                return func(*args, **kwargs)
        finally:
            names.update(asks)

    # -- modules

    def call_module(
        self, original: Callable[..., Any], module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """A module is called: a leaf becomes a step, anything else is entered."""
        path = self.paths.get(id(module))
        atomic = bool(self.atomic) and bool(path) and isinstance(module, self.atomic)
        leaf = None if atomic else leaf_name(module)
        if leaf is not None and self.has_other_tensors(module, leaf):
            leaf = None
        if path and (atomic or leaf is not None):  # the outermost module is a graph, even where it is a leaf elsewhere
            return self.leaf(original, module, leaf, path, args, kwargs)
        call = ModuleCall(module, path, self.stack[-1], self.named_arguments(module, args, kwargs))
        call.unary = len(args) == 1 and not kwargs
        self.stack.append(call)
        try:
            result = original(module, *args, **kwargs)
            call.result = self.values.get(id(result))
            if self.unassigned and path is not None:
                self.assign(path)
            return result
        except Exception:
            if self.failed_in is None:
                self.failed_in = call.where()
            raise
        finally:
            self.stack.pop()

    def has_other_tensors(self, module: nn.Module, leaf: str) -> bool:
        """Whether forward has put other tensors in the places of a leaf's own: then it is recorded what they do."""
        own = {**module._parameters, **module._buffers}
        if any(tensor is not None and id(tensor) not in self.originals for tensor in own.values()):
            return True
        return any(name not in own and isinstance(vars(module).get(name), Tensor) for name in LEAVES[leaf].tensors)

    def named_arguments(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[str, Any], ...]:
        """The tensors among a call's arguments, under the names of the forward's parameters."""
        code = getattr(type(module).forward, "__code__", None)
        names = code.co_varnames[1 : code.co_argcount] if code else ()
        found = [*zip(names, args, strict=False), *kwargs.items()]
        return tuple([(name, self.values.get(id(a))) for name, a in found if isinstance(a, Tensor)])

    def leaf(
        self,
        original: Callable[..., Any],
        module: nn.Module,
        leaf: str | None,
        path: str,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        """Record a leaf module as one step."""
        self.refuse_autocast(type(module).__name__)
        if self.unassigned:
            # A leaf reads its parameters and buffers itself, and may write into them.
            for written in self.assign(path):
                self.values[id(self.attributes[written])] = Attr(written)
        with torch._C.DisableTorchFunction():
            self.saw_traced = False
            step = Step(
                MODULE,
                tuple([self.freeze(a) for a in args]),
                {key: self.freeze(a) for key, a in kwargs.items()} if kwargs else {},
                self.stack[-1],
                module=module,
                path=path,
                no_grad=not torch.is_grad_enabled(),
                leaf=leaf,
                line=line_running(),
            )
            if self.saw_traced:
                args, kwargs = plain(args), plain(kwargs)
            result = None
            if leaf is not None and not kwargs:
                result = shapes.module_result(module, leaf, args)
            if result is None:
                self.running = type(module).__name__
                self.inside_leaf = True
                try:
                    run = self.run_atomic if leaf is None else original
                    result = run(module, *args, **kwargs)
                except Exception:
                    self.failed_in = path
                    raise
                finally:
                    self.inside_leaf = False
                self.running = None
            self.steps.append(step)
            step.shape = shapes_in(result)
            if getattr(module, "inplace", False) and args and result is args[0]:
                self.write(result)  # later uses of the argument see what was written into it
                return result
            step.result = self.register(result)
            return step.result

    def run_atomic(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """Run a module that is kept whole: on meta, or where it depends on values, a copy of it on ones."""
        try:
            return module(*args, **kwargs)
        except Exception:
            copied = copy.deepcopy(module)
            for ours, theirs in zip(copied.modules(), module.modules(), strict=True):
                for mine, twins in ((ours._parameters, theirs._parameters), (ours._buffers, theirs._buffers)):
                    for name, twin in twins.items():
                        original = None if twin is None else self.originals[id(twin)]
                        if original is not None and original.device.type == "meta":
                            raise  # there are no weights to run it with
                        mine[name] = None if original is None else original.detach().clone()  # type: ignore[assignment]
            args, kwargs = pytree.tree_map_only(Tensor, lambda t: torch.ones_like(t, device="cpu"), (args, kwargs))
            return pytree.tree_map_only(Tensor, lambda t: t.to(_META), copied(*args, **kwargs))

    def assign(self, scope: str) -> list[str]:
        """Assign what was written in place into parameters and buffers of a module to them, when its call ends."""
        prefix = f"{scope}." if scope else ""
        paths = [path for path in self.unassigned if path.startswith(prefix)]
        with torch._C.DisableTorchFunction():
            for path in paths:
                del self.unassigned[path]
                value = self.lookup(self.attributes[path])
                self.steps.append(Step(ASSIGN, (Attr(path), value), {}, self.stack[-1], no_grad=True))
        return paths

    def hang_again(self) -> None:
        """Let parameters that forward took away and set again be where they were.

        A parameter that is set becomes one again, and what stands for it on meta a plain attribute.
        """
        for owner, tensors, name, twin in self.members:
            if name not in tensors and owner.__dict__.get(name) is twin:
                del owner.__dict__[name]
                tensors[name] = twin

    def release(self) -> None:
        """Let go of what refers back to this, so that all of it is freed without the garbage collector."""
        del self.memory, self.questions, self.uniforms

    def outcome(self, result: Any) -> Any:
        """What the model returned, frozen; buffers that forward replaced by another tensor are assigned to."""
        rebound = [
            (self.state[twin.untyped_storage()._cdata], now)
            for _, members, name, twin in self.members
            if (now := members.get(name)) is not twin and takes_place(now, twin)
        ]
        for path, _ in rebound:
            # The graph writes into the buffer: what still stands for its old value must be a copy of that.
            old = self.attributes[path]
            self.steps.append(Step(Tensor.clone, (self.lookup(old),), {}, self.stack[0]))
            self.write(old)
            self.unassigned.pop(path, None)
        output = self.freeze_output(result)
        self.assign("")
        values = [(Attr(path), self.lookup(now)) for path, now in rebound]
        self.steps += [Step(ASSIGN, pair, {}, self.stack[0], no_grad=True) for pair in values]
        self.refuse_changing_answers()
        self.refuse_lost_writes(output)
        return output

    def refuse_lost_writes(self, output: Any) -> None:
        """Refuse what is written into a tensor that outlives the run where the next run would read it."""
        for path, refusal in self.changed.items():
            for step in self.steps:
                overwrites = getattr(step.function, "__name__", "") in _OVERWRITING
                read = walk_args((step.args[1:] if overwrites else step.args, step.kwargs))
                if any(isinstance(arg, Attr) and arg.path == path for arg in read):
                    raise refusal
            if any(isinstance(arg, Attr) and arg.path == path for arg in walk_args(output)):
                raise refusal

    def refuse_changing_answers(self) -> None:
        """Refuse what was asked of a buffer that the model itself changes: next time it would answer otherwise."""
        written = {step.args[0].path for step in self.steps if step.function is ASSIGN}
        for path in sorted(self.questions.asked & written):
            raise self.error(
                f"its path depends on the values of '{path}', which it changes itself; a graph has one path only"
            )

    def note_check(self, symbol: str, operands: tuple[Any, ...], outcome: bool) -> None:
        """A comparison of traced numbers was made."""
        self.checks.append(Comparison(len(self.steps), self.stack[-1], symbol, operands, outcome, line_running()))

    def note_training_read(self, module: nn.Module) -> None:
        """Something looked at ``module.training``."""
        if (
            not self.inside_leaf
            and (path := self.paths.get(id(module))) is not None
            and (not path or (leaf_name(module) is None and not isinstance(module, self.atomic)))
        ):
            self.training_reads[id(module)] = module


def _has_tensor(result: Any) -> bool:
    return isinstance(result, Tensor) or bool(leaves_of(Tensor, result))


def _on_meta(leaf: Any) -> Any:
    """A tensor that is elsewhere as one on meta."""
    return meta_twin(leaf) if isinstance(leaf, Tensor) and leaf.device.type != "meta" else leaf


def _to_meta(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of ``Tensor.to`` with every device replaced by meta."""
    if func is not Tensor.to:
        return (args[0], _META), {}
    changed = tuple([_META if isinstance(a, (torch.device, str)) else a for a in args])
    return changed, {key: _META if key == "device" and a is not None else a for key, a in kwargs.items()}


# -- one run


def record(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    names: list[tuple[str, bool]],
    paths: Mapping[int, str],
    atomic: tuple[type[nn.Module], ...],
    *,
    snapshot: Snapshot,
    examples: Sequence[Any],
    all_true: frozenset[str],
    training: bool,
    told: tuple[str, ...],
    dtypes: Mapping[torch.dtype, torch.dtype],
) -> Recording:
    """Run ``model(*args, **kwargs)`` on meta tensors and record it.

    The model is left as it was, whatever happens: attributes that its forward sets, caches that it fills.

    Args:
        model: the model; its parameters may be anywhere.
        args: positional inputs; their tensors are on meta.
        kwargs: keyword inputs, likewise.
        names: name of every input and whether it is passed by keyword, in order.
        paths: id of every submodule -> its path.
        atomic: classes that stay whole.
        snapshot: what hangs on the model, and is put back.
        examples: the example inputs, for questions about what tensors hold.
        all_true: names of inputs that are masks which are true everywhere.
        training: record in training mode, else in evaluation mode.
        told: what the model is told where it asks: that it is ``"compiling"``, and that it is ``"exporting"``.
        dtypes: floating-point dtypes to be replaced, old -> new.

    Raises:
        ConversionError: the model's forward fails, does something that cannot be written down, or computes something
            else when it runs once more.
    """
    recorder = Recorder(model, paths, atomic)
    recorder.told = told
    random_before = random_states(snapshot)
    with preserved(snapshot):
        with swapped(snapshot, recorder, dtypes), patched(recorder):
            _set_mode(snapshot, training)
            # What a model's own `train` has changed is no matter of its forward.
            before = snapshot.changes(recorder.twins) if snapshot.trains_itself else []
            one_pass = _Pass(recorder, args, kwargs, names, examples, all_true)
            one_pass.run(model)
        kept = {(id(change.holder), change.name): change.now for change in before}
        changes = [
            change
            for change in snapshot.changes(recorder.twins)
            if kept.get((id(change.holder), change.name), change.before) is not change.now
        ]
        if changes or random_states(snapshot) != random_before:
            latest = one_pass
            for _ in range(_PASSES):
                latest = _next_pass(one_pass, latest, model, snapshot, dtypes, changes)
                left = snapshot.changes(latest.recorder.twins)
                if plain_numbers(left) == plain_numbers(changes):
                    break  # what comes then finds what this one found
                changes = left
    recorder.release()
    reads = [paths[identity] for identity in recorder.training_reads]
    return Recording(
        recorder.steps,
        one_pass.inputs,
        one_pass.input_shapes,
        one_pass.output,
        one_pass.output_shapes,
        recorder.checks,
        recorder.constants,
        recorder.constant_lines,
        recorder.answers,
        reads,
    )


class _Pass:
    """One pass of a model, on meta.

    Args:
        recorder: records it; it may have recorded an earlier one.
        args: positional inputs.
        kwargs: keyword inputs.
        names: name of every input and whether it is passed by keyword, in order.
        examples: the example inputs.
        all_true: names of inputs that are masks which are true everywhere.

    Attributes:
        inputs: names of the forward's arguments and what was passed, tensors replaced by `Value`s.
        input_shapes: the shapes of what was passed.
        output: what the forward returned, tensors replaced by `Value`s.
        output_shapes: their shapes.
    """

    def __init__(
        self,
        recorder: Recorder,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        names: list[tuple[str, bool]],
        examples: Sequence[Any],
        all_true: frozenset[str],
    ):
        self.recorder, self.args, self.kwargs = recorder, args, kwargs
        self.names, self.examples, self.all_true = names, examples, all_true
        values = [*args, *kwargs.values()]
        earlier = len(recorder.inputs)
        recorder.inputs = [*recorder.inputs, *values]
        recorder.questions = Questions(recorder, [*examples] * (len(recorder.inputs) // max(len(values), 1)))
        for position, value in enumerate(values):
            _register_input(recorder, value, -1 - earlier - position)
        self.inputs = [
            (name, recorder.freeze(value), keyword) for (name, keyword), value in zip(names, values, strict=True)
        ]
        self.input_shapes = [shapes_in(value) for value in values]
        recorder.stack[0].arguments = tuple(
            [(name, frozen) for name, frozen, _ in self.inputs if isinstance(frozen, Value)]
        )
        for (name, _), value in zip(names, values, strict=True):
            if name in all_true:
                recorder.uniforms.assume(value, name)

    def run(self, model: nn.Module) -> None:
        """Run it.

        Raises:
            ConversionError: the model's forward fails, or does something that cannot be written down.
        """
        recorder = self.recorder
        try:
            with kept_settings(), torch.inference_mode(False), torch.enable_grad(), recorder, interruptible():
                result = type(model).__call__(model, *self.args, **self.kwargs)
        except ConversionError:
            raise
        except RecursionError as error:
            raise ConversionError("run", "", None, f"RecursionError: {error}") from error
        except Exception as error:
            where = recorder.failed_in if recorder.failed_in is not None else ""
            reason = f"{type(error).__name__}: {error}"
            raise ConversionError("run", where, recorder.running, reason, line_of(error.__traceback__)) from error
        recorder.hang_again()
        self.output = recorder.outcome(result)
        self.output_shapes = [tuple(t.shape) for t in leaves_of(Tensor, result)]


def _next_pass(
    first: _Pass,
    latest: _Pass,
    model: nn.Module,
    snapshot: Snapshot,
    dtypes: Mapping[torch.dtype, torch.dtype],
    changes: Sequence[Change],
) -> _Pass:
    """One more pass, after the latest one, which computes the same as the first one.

    Raises:
        ConversionError: it computes something else, draws random numbers that are not torch's, or fails.
    """
    earlier = latest.recorder
    recorder = Recorder(model, earlier.paths, earlier.atomic)
    recorder.told = earlier.told
    recorder.go_on_from(earlier)
    random_before = random_states(snapshot)
    with swapped(snapshot, recorder, dtypes, earlier), patched(recorder):
        args, kwargs = map_leaves(
            lambda leaf: torch.empty_like(leaf) if isinstance(leaf, Tensor) else leaf, (first.args, first.kwargs)
        )
        second = _Pass(recorder, args, kwargs, first.names, first.examples, first.all_true)
        second.run(model)
    recorder.release()
    numbering, start = Numbering(), len(earlier.steps)
    alone = numbering.steps(first.recorder.steps, first.recorder.constants, lambda step: ("input", step))
    expected = numbering.result(first.output, first.recorder.steps)
    given = len(earlier.inputs)
    # What an earlier pass was given is something else than what this one is.
    before = numbering.steps(earlier.steps, earlier.constants, lambda step: ("before", step))
    numbers = numbering.steps(
        recorder.steps,
        recorder.constants,
        lambda step: ("input", step + given) if step < -given else ("before", step),
        before,
    )
    drawn = random_states(snapshot) != random_before
    if drawn or numbering.result(second.output, recorder.steps, start) != expected:
        step = parted_at(recorder.steps[start:], numbers[start:], alone)
        where = first.recorder.stack[0].where() if step is None else step.call.where()
        raise ConversionError(
            "record", where, None, reason_of(step, snapshot, changes, drawn), None if step is None else step.line
        )
    return second


def _set_mode(snapshot: Snapshot, training: bool) -> None:
    """Set the training flag of every module.

    Raises:
        ConversionError: a `train` or `eval` of the model's own fails.
    """
    try:
        snapshot.train(training)
    except Exception as error:
        failed = _failed_in(error, snapshot)
        path = next((path for path, module in snapshot.modules[0].named_modules() if module is failed), "")
        reason = (
            f"its own {'train(True)' if training else 'train(False), which eval() is,'} failed with "
            f"{type(error).__name__}: {error}"
        )
        raise ConversionError("run", path, type(failed).__name__, reason, line_of(error.__traceback__)) from error


def _failed_in(error: Exception, snapshot: Snapshot) -> nn.Module:
    """The innermost module of a model in whose method an error was raised."""
    failed, traceback = snapshot.modules[0], error.__traceback__
    known = {id(module): module for module in snapshot.modules}
    while traceback is not None:
        code = traceback.tb_frame.f_code
        own = traceback.tb_frame.f_locals.get(code.co_varnames[0]) if code.co_argcount else None
        failed = known.get(id(own), failed)
        traceback = traceback.tb_next
    return failed


def _register_input(recorder: Recorder, value: Any, step: int) -> None:
    for index, leaf in placed_leaves(value):
        if isinstance(leaf, Tensor):
            recorder.values[id(leaf)] = Value(step, index)
            recorder.alive.append(leaf)


def held_modes(snapshot: Snapshot, paths: Mapping[int, str]) -> dict[str, bool]:
    """The modules that a model's own `train` leaves in one mode, by their paths, and whether that is training."""
    if not snapshot.trains_itself:
        return {}
    with on_meta(snapshot.modules[0]):
        _set_mode(snapshot, True)
        training = snapshot.modes()
        _set_mode(snapshot, False)
        evaluation = snapshot.modes()
    flags = zip(snapshot.modules, training, evaluation, strict=True)
    return {paths[id(module)]: in_training for module, in_training, other in flags if in_training == other}


@contextmanager
def on_meta(model: nn.Module) -> Iterator[None]:
    """A model with every parameter and buffer on meta, for as long as the context lasts."""
    paths = {id(module): path for path, module in model.named_modules()}
    snapshot = Snapshot(model)
    with preserved(snapshot), swapped(snapshot, Recorder(model, paths, ()), {}):
        yield
