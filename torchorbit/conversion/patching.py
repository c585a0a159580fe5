"""What is changed of a model and of torch while a model is recorded, and put back afterwards."""

from __future__ import annotations

import sys
import threading
import types
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from torchorbit.arguments import Attr
from torchorbit.conversion.numbers import observer
from torchorbit.conversion.preserving import Snapshot, holds, put, takes_place
from torchorbit.errors import ConversionError

if TYPE_CHECKING:
    from torchorbit.conversion.recorder import Recorder

#: Held while a model is converted: one is at a time.
lock = threading.RLock()

#: How long a call of a model waits for its conversion in another thread.
_PATIENCE_SECONDS = 60.0


@contextmanager
def swapped(
    snapshot: Snapshot,
    recorder: Recorder,
    dtypes: Mapping[torch.dtype, torch.dtype],
    earlier: Recorder | None = None,
) -> Iterator[None]:
    """Swap parameters, buffers and other tensors that hang on a model for meta tensors. `preserved` undoes it.

    After an ``earlier`` recording that was not put back, what it has left in the places of these stays there, but for
    values of parameters and buffers.
    """
    twins = recorder.twins
    before = {} if earlier is None else earlier.originals
    stood_in = {} if earlier is None else earlier.twins
    written = {} if earlier is None else {(id(held), name): twin for _, held, name, twin in earlier.members}

    def twin_of(tensor: Tensor) -> Tensor:
        twin = twins.get(id(tensor))
        if twin is None:
            twin = twins[id(tensor)] = meta_twin(tensor, dtypes.get(tensor.dtype))
            recorder.originals[id(twin)] = tensor
            recorder.alive.append(twin)
        return twin

    for module in snapshot.modules:
        prefix = recorder.paths[id(module)]
        prefix = prefix + "." if prefix else ""
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if tensor is not None:
                    stood = written.get((id(tensors), name))
                    if earlier is not None and (stood is None or not takes_place(tensor, stood)):
                        continue
                    twin = twin_of(tensor if stood is None else before[id(stood)])
                    recorder.values.setdefault(id(twin), Attr(prefix + name))
                    recorder.attributes[prefix + name] = twin
                    recorder.state.setdefault(twin.untyped_storage()._cdata, prefix + name)
                    recorder.members.append((module, tensors, name, twin))
                    tensors[name] = twin  # type: ignore[assignment]
    for container, key, tensor in snapshot.hanging:
        stood = stood_in.get(id(tensor))
        if earlier is not None and (stood is None or not holds(container, key, stood)):
            continue
        twin = twin_of(tensor)
        if id(twin) not in recorder.values:
            recorder.known_constants[id(twin)] = tensor
        put(container, key, twin)
    yield


@contextmanager
def patched(recorder: Recorder) -> Iterator[None]:
    """Let a recorder see what `patching` intercepts, in this thread only."""
    assert _active is not None
    before, _active.current = _active.current, recorder
    observer.listener = recorder.note_check
    try:
        yield
    finally:
        _active.current = before
        observer.listener = None if before is None else before.note_check


class _Patches:
    """What stands in the places of functions of torch, and the recorder that is told what they are asked."""

    current: Recorder | None = None


_active: _Patches | None = None


@contextmanager
def patching() -> Iterator[None]:
    """Intercept module calls, reads of ``training``, custom autograd functions and ``set_`` for `patched`.

    Putting something in the place of a method of ``nn.Module`` takes a millisecond, as every subclass has to know. So
    it is done once for all recordings of a conversion. What is imported meanwhile may keep what stands in their places:
    it is given the originals afterwards.
    """
    global _active
    before, patches = _active, _Patches()
    original = nn.Module.__call__
    loaded = set(sys.modules)
    apply = vars(torch.autograd.Function)["apply"]  # the classmethod itself, not bound to a class
    fast_path = torch.backends.mha.get_fastpath_enabled()
    asks = torch.compiler.is_compiling, torch.compiler.is_exporting
    set_ = torch.Tensor.set_  # a method that no mode sees

    def recording() -> Recorder | None:
        current = patches.current
        if current is None or threading.get_ident() != current.thread or current.inside_leaf:
            return None
        return current

    threads = {thread.ident for thread in threading.enumerate()}

    def wait(module: nn.Module, recorder: Recorder) -> None:
        """Let a thread that runs the model meanwhile wait until the model has its weights again."""
        if threading.get_ident() in threads and lock.acquire(timeout=_PATIENCE_SECONDS):
            lock.release()
            return
        raise ConversionError(
            "run",
            recorder.paths[id(module)],
            type(module).__name__,
            "it is called in one thread while it is converted in another; let its forward start no threads, and others "
            "use a copy of the model",
        )

    def call(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        ours, current = recording(), patches.current
        if current is not None and threading.get_ident() != current.thread and id(module) in current.paths:
            wait(module, current)
        return original(module, *args, **kwargs) if ours is None else ours.call_module(original, module, args, kwargs)

    def read_training(module: nn.Module) -> bool:
        current = patches.current
        if current is not None and threading.get_ident() == current.thread:
            current.note_training_read(module)
        return module.__dict__["training"]

    def write_training(module: nn.Module, value: bool) -> None:
        module.__dict__["training"] = value

    def refuse(cls: type, *args: Any, **kwargs: Any) -> Any:
        ours = recording()
        if ours is None:
            return apply.__get__(None, cls)(*args, **kwargs)
        if cls.__qualname__ == "CheckpointFunction":  # torch.utils.checkpoint: recomputation is no part of a graph
            return args[0](*args[2:])
        raise ours.error(
            "it is a custom autograd function, whose gradient a graph cannot hold; list its module's class in atomic",
            cls.__qualname__,
        )

    def told(what: str, ask: Callable[[], bool]) -> Callable[[], bool]:
        def answer() -> bool:
            ours = recording()
            return (ours is not None and what in ours.told) or ask()

        return answer

    def replace_memory(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
        ours = recording()
        if ours is not None and id(tensor) in ours.values:
            raise ours.error("the memory of a tensor is replaced, which a graph does not hold; copy into it", "set_")
        return set_(tensor, *args, **kwargs)

    asked = told("compiling", asks[0]), told("exporting", asks[1])
    try:
        torch.Tensor.set_ = replace_memory  # type: ignore[method-assign, assignment]
        torch.compiler.is_compiling, torch.compiler.is_exporting = asked
        nn.Module.__call__ = call  # type: ignore[method-assign]
        nn.Module.training = property(read_training, write_training)  # type: ignore[assignment]
        torch.autograd.Function.apply = classmethod(refuse)  # type: ignore[assignment]
        torch.backends.mha.set_fastpath_enabled(False)
        _active = patches
        yield
    finally:
        _active = before
        if "set_" in vars(torch.Tensor):
            del torch.Tensor.set_
        torch.backends.mha.set_fastpath_enabled(fast_path)
        torch.autograd.Function.apply = apply  # type: ignore[method-assign]
        if "training" in vars(nn.Module):
            del nn.Module.training
        nn.Module.__call__ = original  # type: ignore[method-assign]
        torch.compiler.is_compiling, torch.compiler.is_exporting = asks
        patches.current = None
        originals: dict[Any, Any] = {call: original, asked[0]: asks[0], asked[1]: asks[1]}
        for name in sys.modules.keys() - loaded:
            for key, value in list(vars(sys.modules[name]).items()):
                if type(value) is types.FunctionType and value in originals:
                    setattr(sys.modules[name], key, originals[value])


def meta_twin(tensor: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """A meta tensor that looks like ``tensor``."""
    if isinstance(tensor, (nn.UninitializedParameter, nn.UninitializedBuffer)):
        raise ConversionError("run", "", type(tensor).__name__, "a lazy module has no parameters yet; run it once")
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=dtype or tensor.dtype, device=torch.device("meta"))
