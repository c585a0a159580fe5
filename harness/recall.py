"""Compute nothing twice: matrix products and convolutions of a second run that are those of the first, to the last bit.

Verifying a graph by numbers means running the source and the graph on the same input, and nearly all of that time goes
into the same few kernels on the same numbers. `Recall` keeps what those kernels were given and what they returned
during the source's run. During the graph's run it compares: the same operator, with the same weights in memory, the
same arguments, and inputs whose every bit is the same, gives the result that is already there. Anything else is
computed, so a graph that does something else than its source is found out exactly as if nothing were kept.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

_aten = torch.ops.aten
_EXPENSIVE = {
    _aten.addmm.default,
    _aten.baddbmm.default,
    _aten.bmm.default,
    _aten.convolution.default,
    _aten.mm.default,
    _aten._scaled_dot_product_flash_attention_for_cpu.default,
}


# How far ahead in the first run a call of the second one is looked for.
_LOOK_AHEAD = 32


class _Writes:
    """How often each piece of memory has been written to by in-place operators.

    Tensors count that too (`Tensor._version`), but not for one another: what `matmul` returns shares its memory with
    what the kernel underneath returned, and a write to the former leaves the version of the latter as it was.
    """

    def __init__(self) -> None:
        self._counts: Counter[int] = Counter()

    def note(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Take account of a call, whatever it is."""
        if not func._schema.is_mutable:
            return
        for position, argument in enumerate(func._schema.arguments):
            if argument.alias_info is not None and argument.alias_info.is_write:
                value = args[position] if position < len(args) else kwargs.get(argument.name)
                self._counts.update(_address(leaf) for leaf in tree_leaves(value) if isinstance(leaf, Tensor))

    def of(self, tensors: Iterable[Tensor]) -> list[int]:
        """How often the memory of each tensor has been written to so far."""
        return [self._counts[_address(tensor)] for tensor in tensors]


class _Kept:
    """One call of the first run."""

    def __init__(self, func: Any, arguments: list[Any], result: Any, weights: set[int], writes: _Writes) -> None:
        self.result = result
        # What says which call it is, and what it was computed from: inputs, not weights.
        self._identity = (func, [_identity(a, weights) for a in arguments])
        self._inputs = [a for a in arguments if _is_input(a, weights)]
        self._results = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        self._tensors = [*(a for a in arguments if isinstance(a, Tensor)), *self._results]
        self._writes = writes
        self._written = writes.of(self._tensors)

    def bytes(self) -> int:
        """Memory that is kept for this call, at most."""
        return sum(tensor.numel() * tensor.element_size() for tensor in (*self._inputs, *self._results))

    def is_call(self, func: Any, arguments: list[Any], weights: set[int]) -> bool:
        """Whether a call is of the same operator, with the same weights, shapes and constants."""
        return (func, [_identity(a, weights) for a in arguments]) == self._identity

    def answers(self, arguments: list[Any], weights: set[int]) -> bool:
        """Whether its inputs are the same, and nobody has written to them, to the weights or to the result since."""
        if self._writes.of(self._tensors) != self._written:
            return False
        inputs = [a for a in arguments if _is_input(a, weights)]
        return all(torch.equal(a, b) for a, b in zip(inputs, self._inputs, strict=True))


class Recall(TorchDispatchMode):
    """Keep the expensive results of one run, and use them in the next.

    Args:
        weights: Tensors that both runs have in the same memory; they are compared by their address.
        limit_bytes: How much may be kept. What comes later in the run is computed twice.

    Example:
        >>> recall = Recall(model.state_dict().values(), limit_bytes=2**30)
        >>> with recall:
        ...     expected = model(x)
        >>> recall.first_run_is_over()
        >>> with recall:
        ...     actual = graph(x)
    """

    def __init__(self, weights: Iterable[Tensor], limit_bytes: int) -> None:
        super().__init__()
        self.used = 0
        self.computed = 0
        self._weights = {_address(tensor) for tensor in weights}
        self._room = limit_bytes
        self._kept: deque[_Kept] = deque()
        self._writes = _Writes()
        self._recording = True

    def first_run_is_over(self) -> None:
        """From now on use what was kept."""
        self._recording = False

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func not in _EXPENSIVE:
            self._writes.note(func, args, kwargs)
            return func(*args, **kwargs)
        arguments = tree_leaves((args, kwargs))
        if self._recording:
            result = func(*args, **kwargs)
            kept = _Kept(func, arguments, result, self._weights, self._writes)
            self._room -= kept.bytes()
            if self._room >= 0:
                self._kept.append(kept)
            return result
        for position, kept in enumerate(islice(self._kept, _LOOK_AHEAD)):
            if kept.is_call(func, arguments, self._weights):
                # Both runs follow the same order: what was passed over will not come any more.
                for _ in range(position + 1):
                    self._kept.popleft()
                if kept.answers(arguments, self._weights):
                    self.used += 1
                    return tree_map_only(Tensor, Tensor.clone, kept.result)
                break
        self.computed += 1
        return func(*args, **kwargs)


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _is_input(argument: Any, weights: set[int]) -> bool:
    return isinstance(argument, Tensor) and _address(argument) not in weights


def _identity(argument: Any, weights: set[int]) -> Any:
    """A weight by where it lies, an input by what it looks like, a constant by its value."""
    if not isinstance(argument, Tensor):
        return argument
    layout = (tuple(argument.shape), argument.stride(), argument.dtype)
    return layout if _is_input(argument, weights) else (argument.data_ptr(), *layout)
