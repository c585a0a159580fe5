"""`convert`: record a model a few times, reconcile what was recorded, build the graph."""

from __future__ import annotations

import contextvars
import copy
import dataclasses
import inspect
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from torchorbit.arguments import PLAIN, Attr
from torchorbit.collecting import no_garbage_collection
from torchorbit.comparing import evaluating
from torchorbit.containers import leaves_of, map_leaves, placed_leaves
from torchorbit.conversion import patching
from torchorbit.conversion.aligning import same_steps
from torchorbit.conversion.build import build
from torchorbit.conversion.lines import without_folders
from torchorbit.conversion.preserving import Snapshot
from torchorbit.conversion.reconcile import DisagreementError, Reconciled, Variation, other_answer, parting, reconcile
from torchorbit.conversion.recorder import held_modes, on_meta, record
from torchorbit.conversion.recording import CHECK, Recording, Value
from torchorbit.conversion.repeating import refuse_another
from torchorbit.conversion.wrappers import packages_of, refuse_scripted, unwrapped, without_caches
from torchorbit.errors import ArgumentError, ArgumentTypeError, ConversionError, GraphRunError
from torchorbit.graph.dag import DagModule, Provenance
from torchorbit.graph.one_level import one_level
from torchorbit.graph.vertices import ModuleVertex
from torchorbit.interrupts import InterruptsHeldBack

_META = torch.device("meta")
# Two batch sizes far enough apart that no rounding hides the difference; none is 1, which broadcasts.
_BATCH = 2
_OTHER_BATCH = 7


def convert(
    model: nn.Module,
    example_inputs: Any,
    *,
    other_examples: Sequence[Any] = (),
    all_true: Sequence[str] = (),
    atomic: Sequence[type[nn.Module]] = (),
    entry_point: str = "forward",
) -> DagModule:
    """Convert a model into a `DagModule`.

    The model is run on meta tensors, so nothing is computed but what the model asks of its tensors' values, and weights
    need not exist: it may have been built under ``torch.device("meta")``. It is run a second time with another batch
    size, other lengths, another dtype and in training mode where that matters; what differs between the runs becomes an
    expression in the graph.

    The graph holds the model's own leaf modules, parameters and buffers (they are shared, not copied), is nested like
    the model, and its ``state_dict()`` has the model's keys.

    Args:
        model: any module whose forward runs. It is left as it was, whatever is raised and whoever interrupts. One model
            is converted at a time: other threads wait that convert, or that call a module of this one.
            Of `DataParallel`, `DistributedDataParallel` and ``torch.compile`` it is the module inside.
        example_inputs: a tensor; or a tuple or list of the forward's positional arguments; or a dict of its keyword
            arguments. Shapes and dtypes matter, and values where the model's path depends on them: the graph holds the
            path that the example takes, and refuses inputs that would take another one. The first dimension is the
            batch.
        other_examples: more inputs of the same form, of other sizes and values maybe. The graph is recorded with
            ``example_inputs``; where it would refuse one of these, which it would do when it is given it, conversion
            fails.
        all_true: names of inputs that are masks, of truth values or of integers, and true (or 1) everywhere. What such
            a mask has no effect on, as scores that zeros are added to, is left out of the graph, which takes the mask
            as an input all the same, and refuses one that is not true everywhere.
        atomic: module classes (with their subclasses) that stay whole: a vertex of their own that is not looked
            into. A graph with such a vertex cannot be saved. (torch-dag: ``custom_autowrap_torch_module_classes``.)
        entry_point: the method that the graph computes: ``"forward_features"``, or one of a submodule,
            ``"head.predict"``, which alone is then converted.

    Returns:
        The graph. ``dag.provenance`` says how it was recorded: which of batch size, lengths, dtype and training mode
        are free.

    Raises:
        ConversionError: with the stage, the path of the module and the operator at which conversion failed; or one of
            ``other_examples`` takes another path than ``example_inputs``, with the line of the model's code that asks.
        ArgumentTypeError: ``model`` is no module, ``example_inputs`` holds no tensor, or ``other_examples`` is no list.
        ArgumentError: the model has no such entry point, one of ``other_examples`` is not of the same form, or what
            ``all_true`` names is no input or not true everywhere.

    Examples:
        >>> dag = torchorbit.convert(model.eval(), torch.randn(1, 3, 224, 224))
        >>> torch.testing.assert_close(dag(x), model(x))
    """
    if not isinstance(model, nn.Module):
        raise ArgumentTypeError(f"model is a {type(model).__name__}, expected an nn.Module")
    model = unwrapped(model)
    if entry_point != "forward":
        model = entered_at(model, entry_point)
    with patching.lock, InterruptsHeldBack(), no_garbage_collection():
        inputs = _Inputs.of(model, example_inputs)
        inputs.all_true = inputs.true_everywhere(all_true)
        return _convert(model, inputs, _others(model, inputs, other_examples), tuple(atomic))


def entered_at(model: nn.Module, entry_point: str) -> nn.Module:
    """A module whose forward is a method of a model or of a submodule of it; it shares everything else.

    Raises:
        ArgumentTypeError: ``entry_point`` is no text.
        ArgumentError: there is no such method.
    """
    if not isinstance(entry_point, str):
        raise ArgumentTypeError(f"entry_point={entry_point!r}, expected the name of a method, as 'forward_features'")
    path, _, method = entry_point.rpartition(".")
    try:
        owner = model.get_submodule(path)
    except AttributeError:
        owner = model
        method = ""
    if not callable(getattr(owner, method, None)):
        raise ArgumentError(
            f"entry_point={entry_point!r}: {type(model).__name__} has no such method; expected the name of one, behind "
            "the path of a submodule where it is one of that, as 'forward_features' or 'head.forward'"
        )
    entered = copy.copy(owner)
    if method != "forward":
        entered.__dict__["forward"] = getattr(entered, method)
    return entered


def _convert(
    model: nn.Module, inputs: _Inputs, others: Sequence[_Inputs], atomic: tuple[type[nn.Module], ...]
) -> DagModule:
    paths: dict[int, list[str]] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        if id(module) not in paths:
            refuse_scripted(module, path)
        paths.setdefault(id(module), []).append(path)
    recorder = _Recordings(model, inputs, {identity: found[0] for identity, found in paths.items()}, atomic)
    with patching.patching():
        reconciled, provenance = recorder.collect()
    held = held_modes(recorder.snapshot, recorder.paths)
    provenance = dataclasses.replace(
        provenance,
        always_evaluation=tuple([path for path, training in held.items() if not training]),
        always_training=tuple([path for path, training in held.items() if training]),
    )
    if provenance.training_differs:
        modules = ", ".join(f"'{path}'" for path in provenance.training_differs[:5])
        warnings.warn(
            f"recorded in evaluation mode: in training the model takes another path in {modules}, which the graph does "
            "not hold",
            stacklevel=4,
        )
    dag = build(model, reconciled, paths, provenance, recorder.follows)
    one_level(dag, separate=True)  # what comes next needs it
    if others:
        with patching.patching():
            for number, other in enumerate(others):
                recorder.hold(dag, f"other_examples[{number}]", other)
    return dag


def _others(model: nn.Module, inputs: _Inputs, others: Any) -> list[_Inputs]:
    """Further examples, each of the form of the first one."""
    if not isinstance(others, (list, tuple)):
        raise ArgumentTypeError(
            f"other_examples is a {type(others).__name__}, expected a list of examples, each as example_inputs is"
        )
    found = [_Inputs.of(model, other, f"other_examples[{number}]") for number, other in enumerate(others)]
    for number, other in enumerate(found):
        if other.form() != inputs.form():
            raise ArgumentError(
                f"other_examples[{number}] is {other.form()}, expected the form of example_inputs, {inputs.form()}: "
                "the same arguments, in which tensors may be of other sizes, and all else is equal"
            )
        other.all_true = other.true_everywhere(tuple(inputs.all_true), f"other_examples[{number}]")
    return found


@dataclasses.dataclass(frozen=True, slots=True)
class _Stretch:
    """A change of lengths: of some dimensions, or of all spatial ones of images (None).

    Images are tripled: three is odd and no window size or stride that occurs, so a length stays divisible by whatever
    it was divisible by, and indivisible by whatever it was not.

    Attributes:
        dims: the dimensions.
        factor: how many times as long it is.
        divisor: of how many parts of the length that many are taken.
        indices: of tensors of integers alone.
    """

    dims: tuple[int, ...] | None
    factor: int
    divisor: int = 1
    indices: bool = False

    def dims_of(self, tensor: Tensor) -> tuple[int, ...]:
        """The dimensions of a tensor that it changes."""
        if self.indices and tensor.is_floating_point():
            return ()
        if self.dims is None:
            return tuple(range(2, tensor.dim())) if tensor.dim() > 3 else ()  # of an image beside tokens
        return tuple([dim for dim in self.dims if dim < tensor.dim()])


def _place(error: ConversionError | DisagreementError) -> tuple[str, str]:
    """Where a recording went wrong, and why."""
    reason = f"{error.reason} ({without_folders(error.line)})" if error.line else error.reason
    return error.module, reason


def _refused(called: str, module: str, reason: str, line: str | None = None) -> ConversionError:
    """The error that says that a graph would refuse an example."""
    return ConversionError(
        "reconcile",
        module,
        None,
        f"the graph that is recorded with example_inputs would refuse {called}: {reason}; convert once for each, or "
        "leave it out",
        line,
    )


@dataclasses.dataclass(slots=True)
class _Inputs:
    """Example inputs: only their structure, shapes and dtypes are used."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    names: list[tuple[str, bool]]
    all_true: frozenset[str] = frozenset()

    @classmethod
    def of(cls, model: nn.Module, example: Any, called: str = "example_inputs") -> _Inputs:
        args: tuple[Any, ...] = ()
        kwargs: dict[str, Any] = {}
        if isinstance(example, Mapping):
            kwargs = dict(example)
        elif isinstance(example, (tuple, list)):
            args = tuple(example)
        else:
            args = (example,)
        if not leaves_of(Tensor, (args, kwargs)):
            raise ArgumentTypeError(f"{called} is {example!r}, expected a tensor, or a tuple or dict that holds one")
        try:
            parameters = list(inspect.signature(model.forward).parameters.values())
        except (TypeError, ValueError):
            parameters = []
        positional = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
        names = [(positional[n] if n < len(positional) else f"input_{n}", False) for n in range(len(args))]
        # An argument given by name that could be positional is so in the graph, where those before it are given, too.
        order = [p.name for p in parameters]
        kwargs = dict(sorted(kwargs.items(), key=lambda item: order.index(item[0]) if item[0] in order else len(order)))
        for name in kwargs:
            follows = len(names) < len(positional) and positional[len(names)] == name
            names.append((name, not follows or any(keyword for _, keyword in names)))
        return cls(args, kwargs, names)

    def true_everywhere(self, names: Any, called: str = "example_inputs") -> frozenset[str]:
        """The names of inputs that are masks which are true everywhere, if they are."""
        if not isinstance(names, (tuple, list, set, frozenset)) or not all(isinstance(name, str) for name in names):
            raise ArgumentTypeError(f"all_true is {names!r}, expected names of inputs, as ('attention_mask',)")
        given = dict(zip([name for name, _ in self.names], [*self.args, *self.kwargs.values()], strict=True))
        for name in names:
            if name not in given:
                raise ArgumentError(f"all_true names '{name}', expected names of inputs that are given: {list(given)}")
            mask = given[name]
            if not isinstance(mask, Tensor) or mask.is_floating_point() or mask.is_complex():
                kind = str(mask.dtype) if isinstance(mask, Tensor) else type(mask).__name__
                raise ArgumentTypeError(
                    f"all_true names '{name}', which is a {kind}, expected a tensor of truth values or of integers"
                )
            if mask.device.type != "meta" and not bool((mask == 1).all()):
                raise ArgumentError(
                    f"all_true names '{name}', which is not true (or 1) everywhere in {called}; give a mask that is, "
                    "or leave it out of all_true"
                )
        return frozenset(names)

    def form(self) -> tuple[Any, ...]:
        """What examples for one graph have in common, with the numbers of dimensions for tensors."""

        def described(leaf: Any) -> Any:
            if isinstance(leaf, Tensor):
                return f"a tensor of {leaf.dim()} dimensions"
            return leaf if type(leaf) in PLAIN else type(leaf).__name__

        return map_leaves(described, self.args), map_leaves(described, self.kwargs)

    def tensors(self) -> list[Tensor]:
        return leaves_of(Tensor, (self.args, self.kwargs))

    def on_meta(self, shape: Callable[[Tensor], tuple[int, ...]], dtypes: Mapping[torch.dtype, torch.dtype]) -> Any:
        def change(leaf: Any) -> Any:
            if not isinstance(leaf, Tensor):
                return leaf
            return torch.empty(shape(leaf), dtype=dtypes.get(leaf.dtype, leaf.dtype), device=_META)

        return map_leaves(change, self.args), map_leaves(change, self.kwargs)


class _Recordings:
    """Takes the recordings that a model needs, and no more."""

    def __init__(self, model: nn.Module, inputs: _Inputs, paths: dict[int, str], atomic: tuple[type[nn.Module], ...]):
        self.model = model
        self.snapshot = Snapshot(model)
        self.packages = packages_of(model)
        self.inputs = inputs
        self.paths = paths
        self.atomic = atomic
        first = next((t for t in inputs.tensors() if t.dim() > 0), None)
        self.example_batch = 0 if first is None else first.shape[0]
        self.batch = _BATCH
        self.batch_fixed_by = ("", "")
        self.told: tuple[str, ...] = ("compiling",)
        self.follows = self.follow()
        dtype = next((t.dtype for t in inputs.tensors() if t.is_floating_point()), None)
        dtype = dtype or next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
        other = torch.bfloat16 if dtype != torch.bfloat16 else torch.float16
        self.other_dtype = {dtype: other}

    def values(self) -> list[tuple[Value, Tensor]]:
        """The tensors among the inputs, those inside of containers included."""
        inputs = [*self.inputs.args, *self.inputs.kwargs.values()]
        return [
            (Value(-1 - n, index), leaf)
            for n, value in enumerate(inputs)
            for index, leaf in placed_leaves(value)
            if isinstance(leaf, Tensor)
        ]

    def follow(self) -> Value | Attr | None:
        """The tensor whose dtype and device are those of the run: a floating-point input, or else a parameter."""
        values = self.values()
        for place, value in values:
            if value.is_floating_point():
                return place
        for path, parameter in self.model.named_parameters():
            if parameter.is_floating_point():
                return Attr(path)
        return values[0][0]

    def batched(self, tensor: Tensor) -> bool:
        return tensor.dim() > 0 and tensor.shape[0] == self.example_batch

    def take(self, variation: Variation, stretch: _Stretch | None = None) -> Recording:
        """Record once, with lengths changed as ``stretch`` says."""

        def shape(tensor: Tensor) -> tuple[int, ...]:
            lengths = list(tensor.shape)
            if self.batch and self.batched(tensor):
                lengths[0] = _OTHER_BATCH if variation.batch else self.batch
            for dim in () if stretch is None else stretch.dims_of(tensor):
                assert stretch is not None
                lengths[dim] = max(lengths[dim] * stretch.factor // stretch.divisor, 1)
            return tuple(lengths)

        dtypes = self.other_dtype if variation.dtype else {}
        args, kwargs = self.inputs.on_meta(shape, dtypes)
        with without_caches(self.packages, self.snapshot.caches):
            return self.record(args, kwargs, variation, dtypes)

    def record(
        self, args: Any, kwargs: Any, variation: Variation, dtypes: Mapping[torch.dtype, torch.dtype]
    ) -> Recording:
        """One recording with these inputs, on meta."""
        return contextvars.copy_context().run(
            record,
            self.model,
            args,
            kwargs,
            self.inputs.names,
            self.paths,
            self.atomic,
            snapshot=self.snapshot,
            examples=[*self.inputs.args, *self.inputs.kwargs.values()],
            all_true=self.inputs.all_true,
            training=variation.training,
            told=self.told,
            dtypes=dtypes,
        )

    def hold(self, dag: DagModule, called: str, other: _Inputs) -> None:
        """Refuse an example that the graph would refuse, or for which it would give a result of another shape.

        The model is recorded with it, on its values, and with the first example at its own size; the graph runs on
        meta tensors.
        """
        mine = self.inputs
        own = self.recorded(mine)
        try:
            self.inputs = other
            theirs = self.recorded(other)
        except ConversionError as error:
            raise ConversionError(
                error.stage, error.module, error.operator, f"with {called}: {error.reason}", error.line
            ) from error
        finally:
            self.inputs = mine
        question = other_answer(own, theirs)
        if question is not None:
            asked, found = question
            raise ConversionError(
                "reconcile",
                asked.call.where(),
                asked.asked,
                f"with {called} it is {found} where it is {asked.found} with example_inputs, so that the model may "
                "take another path, and a graph has one path only; convert once for each path, or, where it asks "
                "for a mask that is always true, name the mask in all_true",
                asked.line,
            )
        if not same_steps(own.steps, theirs.steps, training=False):
            parted = parting(own, theirs)
            raise _refused(called, parted.module, parted.reason, parted.line)
        args, kwargs = other.on_meta(lambda tensor: tuple(tensor.shape), {})
        try:
            with evaluating(dag), on_meta(dag), torch.no_grad():
                result = dag(*args, **kwargs)
        except GraphRunError as error:
            vertex = dict(dag.all_vertices()).get(error.vertex)
            if isinstance(vertex, ModuleVertex) and not vertex.leaf:
                warnings.warn(
                    f"the sizes of {called} are not held against the graph: '{error.vertex}', which is kept whole, "
                    f"does not run on meta tensors: {error.reason}",
                    stacklevel=5,
                )
                return
            raise _refused(called, error.vertex.replace("/", "."), error.reason) from error
        shapes = [tuple(tensor.shape) for tensor in leaves_of(Tensor, result)]
        if shapes != theirs.output_shapes:
            reason = f"the graph gives results of shapes {shapes}, the model {theirs.output_shapes}"
            raise _refused(called, "", reason)

    def recorded(self, inputs: _Inputs) -> Recording:
        """A recording with inputs of these sizes."""
        args, kwargs = inputs.on_meta(lambda tensor: tuple(tensor.shape), {})
        with without_caches(self.packages, self.snapshot.caches):
            return self.record(args, kwargs, Variation(), {})

    def first(self) -> Recording:
        """Record for the first time: at a batch size that shows where it is used, or as given.

        Models that ask are told that they are compiled, and leave out what depends on values. What cannot be recorded
        like this is recorded as for an export, which some write otherwise than for a compiler, or as it runs by itself.
        """
        sizes = [self.batch] if self.example_batch == self.batch else [self.batch, 0]
        refused: ConversionError | None = None
        for self.told in (("compiling",), ("compiling", "exporting"), ()):
            for self.batch in sizes:
                try:
                    return self.take(Variation())
                except ConversionError as error:
                    refused = error if refused is None or len(self.told) == 1 else refused
                    self.batch_fixed_by = _place(error)
        assert refused is not None
        raise refused

    def merged(self, first: Recording, others: list[tuple[Recording, Variation]]) -> Reconciled:
        tensor = next((place for place, value in self.values() if self.batched(value)), None)
        batch = None if tensor is None or not self.batch else (tensor, self.batch, _OTHER_BATCH)
        return reconcile(first, others, follows=self.follows, batch=batch, dtypes=next(iter(self.other_dtype.items())))

    def collect(self) -> tuple[Reconciled, Provenance]:
        """Record in as few runs as it takes, and reconcile them."""
        first = self.first()
        reconciled, provenance = self.compare(first)
        if (
            self.batch
            and self.batch != self.example_batch
            and not (provenance.free_batch and self.covers(reconciled, first))
        ):
            # The recording does not hold for the example's batch size: record again at that size.
            self.batch = 0
            reconciled, provenance = self.compare(self.take(Variation()))
        return reconciled, provenance

    def covers(self, reconciled: Reconciled, first: Recording) -> bool:
        """Whether the example's own batch size takes the recorded path; asked only where the path may depend on it."""
        if not any(item.step.function is CHECK for item in reconciled.items):
            return True
        recorded, self.batch = self.batch, 0
        try:
            own = self.take(Variation())
        except ConversionError as error:
            self.batch_fixed_by = _place(error)
            return False
        finally:
            self.batch = recorded
        ours = [check.outcome for check in first.checks]
        theirs = [check.outcome for check in own.checks]
        if len(own.steps) == len(first.steps) and ours == theirs:
            return True
        self.batch_fixed_by = _place(parting(first, own))
        return False

    def compare(self, first: Recording) -> tuple[Reconciled, Provenance]:
        """Record under other conditions, all at once or one by one, and reconcile with the first recording."""
        stretches = self.stretches()
        everything = Variation(
            batch=bool(self.batch), lengths=bool(stretches), dtype=True, training=bool(first.training_reads)
        )
        fixed_by = ("", "")
        for stretch in [*stretches, None]:
            variation = dataclasses.replace(everything, lengths=stretch is not None)
            try:
                reconciled, kept = self.at_once(first, variation, stretch)
            except (ConversionError, DisagreementError) as error:
                if stretch is not None and not fixed_by[1]:
                    fixed_by = _place(error)
                continue
            return reconciled, self.provenance(first, kept, everything, fixed_by, stretch)
        return self.one_by_one(first, everything, stretches)

    def at_once(
        self, first: Recording, variation: Variation, stretch: _Stretch | None
    ) -> tuple[Reconciled, list[Variation]]:
        """Vary several things in one recording, or in one for each mode where these differ in more than a few numbers.

        What only training does is then recorded with the lengths that were given: numbers in it that have lost their
        origin are those of these lengths.
        """
        evaluated = dataclasses.replace(variation, training=False)
        try:
            reconciled = self.merged(first, [(self.take(variation, stretch), variation)])
            if not reconciled.only_evaluated or evaluated == Variation():
                return reconciled, [variation]
        except DisagreementError as error:
            if not error.mode or evaluated == Variation():
                raise
        trained = Variation(training=True, dtype=variation.dtype)
        others = [(self.take(evaluated, stretch), evaluated), (self.take(trained), trained)]
        return self.merged(first, others), [evaluated, trained]

    def one_by_one(
        self, first: Recording, everything: Variation, stretches: list[_Stretch]
    ) -> tuple[Reconciled, Provenance]:
        """Vary one thing at a time, and keep the variations that one graph can explain.

        What is otherwise in a second recording with nothing varied, no variation explains.
        """
        refuse_another(first, self.take(Variation()))
        kept: list[tuple[Recording, Variation]] = []
        reconciled = self.merged(first, kept)
        fixed_by, stretched = ("", ""), None
        for field in ("batch", "training", "dtype", "lengths"):
            if not getattr(everything, field):
                continue
            variation = Variation(**{field: True})
            for stretch in stretches if variation.lengths else [None]:
                try:
                    other = self.take(variation, stretch)
                    reconciled = self.merged(first, [*kept, (other, variation)])
                except (ConversionError, DisagreementError) as error:
                    if variation.lengths and not fixed_by[1]:
                        fixed_by = _place(error)
                    if variation.batch:
                        self.batch_fixed_by = _place(error)
                    continue
                kept.append((other, variation))
                stretched = stretch or stretched
                break
        varied = [variation for _, variation in kept]
        return reconciled, self.provenance(first, varied, everything, fixed_by, stretched)

    def stretches(self) -> list[_Stretch]:
        """How to change lengths, in the order in which to try."""
        ranks = {tensor.dim() for tensor in self.inputs.tensors()}
        if max(ranks, default=0) >= 4:
            return [_Stretch(None, 3)]
        if max(ranks, default=0) == 3:
            # Tokens come second, or last where the model is a convolution along them; tables may limit them. All of
            # them where nothing has weights for one; a layer that does says so at once.
            one = [_Stretch((1,), 3), _Stretch((2,), 3), _Stretch((1,), 1, 2), _Stretch((2,), 1, 2)]
            return [_Stretch((1, 2), 3), *one]
        matrices = [t for t in self.inputs.tensors() if t.dim() == 2]
        found = []
        if any(t.is_floating_point() for t in matrices):
            found.append(_Stretch((1,), 3))
        if not all(t.is_floating_point() for t in matrices):
            found += [_Stretch((1,), 3, indices=True), _Stretch((1,), 1, 2, indices=True)]
        return found

    def provenance(
        self,
        first: Recording,
        kept: list[Variation],
        wanted: Variation,
        fixed_by: tuple[str, str],
        stretched: _Stretch | None,
    ) -> Provenance:
        """What the recordings have shown; ``stretched`` is how lengths were changed at last, with success."""
        fixed_dims: set[int] = set()
        for stretch in self.stretches():
            if stretched is None or stretch == stretched:
                break
            fixed_dims.update(set(stretch.dims or ()) - set(stretched.dims or ()))
        free_lengths = any(variation.lengths for variation in kept) or not wanted.lengths
        free_batch = any(variation.batch for variation in kept)
        lengthened = stretched if any(variation.lengths for variation in kept) else None
        fixed_lengths = []
        for tensor in self.inputs.tensors():
            varied = {0} if free_batch and self.batched(tensor) else set()
            varied.update(() if lengthened is None else lengthened.dims_of(tensor))
            fixed_lengths.append(tuple([dim for dim in range(tensor.dim()) if dim not in varied]))
        training = not wanted.training or any(variation.training for variation in kept)
        return Provenance(
            source=f"{type(self.model).__module__}.{type(self.model).__qualname__}",
            mode="both" if training else "evaluation",
            training_differs=() if training else tuple(first.training_reads),
            free_batch=free_batch,
            free_lengths=free_lengths,
            fixed_dims=tuple(sorted(fixed_dims)),
            fixed_lengths=tuple(fixed_lengths),
            fixed_by=("", "") if free_lengths and not fixed_dims else fixed_by,
            batch_fixed_by=("", "") if free_batch else self.batch_fixed_by,
            free_dtype=any(variation.dtype for variation in kept),
            input_shapes=tuple(tuple(tensor.shape) for tensor in self.inputs.tensors()),
            input_dtypes=tuple(str(tensor.dtype).removeprefix("torch.") for tensor in self.inputs.tensors()),
            torch=torch.__version__,
        )
