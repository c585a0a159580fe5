"""New weights for what consumed the channels that are gone, in closed form."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from tqdm import tqdm

from torchorbit.arguments import Attr
from torchorbit.comparing import evaluating
from torchorbit.errors import ArgumentError, InternalError
from torchorbit.graph.dag import DagModule
from torchorbit.graph.one_level import keep_shapes
from torchorbit.orbits.flat import FlatModel
from torchorbit.orbits.orbit import Orbit
from torchorbit.orbits.running import Running
from torchorbit.orbits.selection import Selection
from torchorbit.pruning.calibration.batches import (
    autocasting,
    batches_of,
    default_sample_to_model_inputs,
    default_sample_to_n_samples,
)
from torchorbit.pruning.criteria.slices import require_weights
from torchorbit.pruning.reconstruction.consumers import Consumer, Use, changed_vertices, find_consumers
from torchorbit.pruning.reconstruction.fitting import HELD_OUT, Channels, Fitting, Rows, Sampling, matrices_of
from torchorbit.pruning.reconstruction.lockstep import Lockstep, Places
from torchorbit.pruning.reconstruction.products import (
    PairMoments,
    Product,
    channels_last,
    find_products,
    solve_product,
)
from torchorbit.pruning.reconstruction.storing import Batches
from torchorbit.removal.cutting import remove_channels
from torchorbit.removal.history import LayerError, Reconstruction
from torchorbit.removal.masked import random_inputs
from torchorbit.removal.proof import verify_removal

#: How weights are found: ``"layerwise"`` goes through the graph in its order, so that a layer makes up for what went
#: wrong before it, too; ``"affine"`` looks at the whole model alone, channel by channel, in one pass.
Method = Literal["layerwise", "affine"]

#: A row of a layer has so many inputs at most: their products take 170 MB. Wider layers are made channel by channel.
_MOST_INPUTS = 4608
#: Values between layers are kept in memory up to this, and in temporary files beyond.
_MOST_BYTES = 4 << 30
# How often a layer that is called several times is looked at.
_ATTEMPTS = 4
# By which a removal may be off in the proof, of the largest output: numbers of less precision are off by more.
_TOLERANCES = {torch.float64: 1e-8, torch.float32: 1e-3}
_LEAST_PRECISE = 0.1


def reconstruct(
    dag: DagModule,
    removed: Mapping[Orbit, Iterable[int]],
    loader: Iterable[Any],
    *,
    method: Method = "layerwise",
    max_batches: int | None = None,
    sample_to_model_inputs: Callable[[Any], tuple[tuple[Any, ...], dict[str, Any]]] = default_sample_to_model_inputs,
    sample_to_n_samples: Callable[[Any], int] = default_sample_to_n_samples,
    device: torch.device | str | None = None,
    autocast: torch.dtype | None = None,
    allow_empty: bool = False,
    adjust_dropout: bool = False,
    progress: bool = False,
    seed: int = 0,
) -> DagModule:
    """Remove units of orbits, and give what consumed them new weights that make up for it.

    No labels, no gradients and no training are needed, only inputs: one sample is enough to run, a hundred make most of
    the difference. Layer by layer in the order of the graph the weights become those that give, from what the smaller
    model computes up to there, what the whole model computed, as closely as least squares can::

        W', b' = argmin |W' x' + b' - y|^2 + strength |W' - W|^2

    where ``x'`` is the layer's input in the smaller model, ``y`` its output in the whole one as far as it is kept, and
    ``W`` what the removal left of the weights. How strongly weights are held where they are is chosen by samples that
    they are not fitted to; a layer is left as it is where nothing does better on these. Queries that are multiplied
    with keys and lost channels are mixed head by head, so that the products are those of the whole ones. This is the
    reconstruction of He et al., 2017 (arXiv 1707.06168, on one layer at a time), in closed form and in sequence as in
    OBC and ZipLM (arXiv 2208.11580, 2302.04089) but for any graph.

    Linear layers and convolutions of one to three dimensions, dense, in groups, depthwise and transposed, get new
    weights, shared ones over all of their calls. A layer without a bias gets one where none is behind it: a batch norm
    that follows takes it into its running mean. What has weights that the graph computes, or that something else reads
    as well, recurrent layers and embeddings are left alone.

    Args:
        dag: the whole graph, as `torchorbit.find_orbits` saw it. It stays as it is.
        removed: orbit -> positions of the units to remove, as for `torchorbit.remove_channels`.
        loader: gives batches of data; labels are not looked at.
        method: ``"layerwise"``, or ``"affine"``, which makes up for removed channels by those that are kept of the same
            value as they are in the whole model (``W' = W_kept + W_removed M``): it needs one pass of the whole model
            and little memory, and comes less close.
        max_batches: how many batches to take at most; None for all.
        sample_to_model_inputs: makes positional and keyword inputs of a batch; by default its first item is the only
            input.
        sample_to_n_samples: gives the number of samples of a batch; by default the length of the first tensor in it.
        device: where batches go; by default where the graph is.
        autocast: run in this dtype where mixed precision does; sums are taken in double precision.
        allow_empty: let an orbit lose all of its units, as for `torchorbit.remove_channels`.
        adjust_dropout: as for `torchorbit.remove_channels`.
        progress: show a progress bar.
        seed: of the rows that are looked at where there are more than enough.

    Returns:
        The smaller graph. The last of ``history.prunings`` says what became of every layer: `Reconstruction`.

    Raises:
        ArgumentError: what is removed is refused as by `torchorbit.remove_channels`; there is no such method; or the
            graph has no weights.
        ArgumentTypeError: an argument is of the wrong type.
        CalibrationError: the loader gives nothing, or inputs are not what they should be.
        InternalError: the removal is not what it should be, which is a mistake in torchorbit.
    """
    require_method(method)
    smaller = remove_channels(dag, removed, allow_empty=allow_empty, adjust_dropout=adjust_dropout)
    selection = Selection(removed, dag, allow_empty=allow_empty)
    if selection.orbits is None:
        return smaller
    require_weights(selection.orbits)
    difference = _proved(dag, smaller, selection)
    found = batches_of(loader, dag, sample_to_model_inputs, sample_to_n_samples, max_batches=max_batches, device=device)
    run = Running(selection.orbits.model)
    values, samples = [], []
    for batch in found:
        given = run.given(batch.args, batch.kwargs)
        values.append((dict(given), dict(given)))
        samples.append(batch.samples)
    with (
        evaluating(dag, smaller),
        torch.inference_mode(False),
        torch.no_grad(),
        autocasting(dag, autocast),
        Batches(values, samples, _MOST_BYTES) as batches,
    ):
        layers = _Layers(selection, smaller, batches, method, Sampling(seed=seed))
        layers.run(progress=progress)
    keep_shapes(smaller)
    done = Reconstruction(method, sum(samples), difference, tuple(layers.errors))
    assert smaller.history is not None
    *before, last = smaller.history.prunings
    smaller.history = replace(smaller.history, prunings=(*before, replace(last, reconstruction=done, data=True)))
    return smaller


@torch.no_grad()
def adopt(fitted: DagModule, smaller: DagModule, optimizer: Optimizer | None) -> None:
    """Give a pruned graph the weights of another one that lost the same units.

    Args:
        fitted: has the weights, maybe some biases more.
        smaller: gets them; its parameters stay the same objects.
        optimizer: of its parameters; biases that are new join its first group.
    """
    there = dict(smaller.named_parameters(remove_duplicate=False)) | dict(smaller.named_buffers(remove_duplicate=False))
    made: dict[int, nn.Parameter] = {}
    found = (*fitted.named_parameters(remove_duplicate=False), *fitted.named_buffers(remove_duplicate=False))
    for path, tensor in found:
        if path in there:
            there[path].copy_(tensor)
            continue
        owner, _, name = path.rpartition(".")
        bias = made.setdefault(id(tensor), nn.Parameter(tensor.detach().clone(), requires_grad=tensor.requires_grad))
        smaller.get_submodule(owner).register_parameter(name, bias)
    keep_shapes(smaller)
    if optimizer is not None:
        optimizer.param_groups[0]["params"] += made.values()


def require_method(method: Any, name: str = "method") -> None:
    """Refuse what is no method.

    Args:
        method: what was given for one.
        name: of the argument.

    Raises:
        ArgumentError: it is none.
    """
    if method not in get_args(Method):
        raise ArgumentError(f"{name}={method!r}, expected one of {', '.join(map(repr, get_args(Method)))}")


def _proved(dag: DagModule, smaller: DagModule, selection: Selection) -> float:
    """How far the pruned graph is from the whole one with zeros, before its weights are changed.

    Raises:
        InternalError: it is another one.
    """
    difference = verify_removal(dag, smaller, selection.removed)
    dtype = next((parameter.dtype for parameter in dag.parameters() if parameter.is_floating_point()), torch.float32)
    if not difference <= _TOLERANCES.get(dtype, _LEAST_PRECISE):
        raise InternalError(
            "the removal is not what the whole graph computes with zeros in its place: the output differs by "
            f"{difference:.3g} of its largest number. Nothing was changed; this is a mistake in torchorbit: please "
            "report it"
        )
    return difference


class _Layers:
    """Finds new weights for the layers of a pruned graph, one after the other.

    Args:
        selection: what was removed from the whole graph.
        smaller: what is left of it.
        batches: the inputs of both.
        method: as `Method` says.
        sampling: how many rows are looked at.

    Attributes:
        errors: of every layer, before and after, in the order of the graph.
    """

    def __init__(self, selection: Selection, smaller: DagModule, batches: Batches, method: Method, sampling: Sampling):
        assert selection.orbits is not None
        self._selection = selection
        self._small = FlatModel.of(smaller, separate=False)
        self._steps = Lockstep(selection, self._small, batches)
        self._method = method
        self._sampling = sampling
        self.errors: list[LayerError] = []

    def run(self, *, progress: bool) -> None:
        """Go through the layers whose inputs are others than in the whole graph."""
        whole, small = self._steps.places
        changed = changed_vertices(self._steps.whole, self._small, self._selection)
        consumers = find_consumers(self._small)
        events: list[tuple[int, Consumer | Product]] = [
            (small[consumer.uses[0].vertex], consumer)
            for consumer in consumers
            if any(use.vertex in changed for use in consumer.uses) and all(use.vertex in whole for use in consumer.uses)
        ]
        if self._method == "layerwise":
            args, kwargs = random_inputs(self._small.dag, 0)
            for product in find_products(self._small, self._selection, consumers, args, kwargs):
                events.append((small[product.vertex], product))
        events.sort(key=lambda event: event[0])
        with tqdm(events, disable=not progress, desc="reconstruction", leave=False) as bar:
            for place, event in bar:
                if isinstance(event, Product):
                    self._mix(event, (whole[event.vertex], place))
                else:
                    self._fit(event, self._before(event.uses[0]))

    # -- layers

    def _fitting(self, consumer: Consumer) -> Fitting | None:
        """What a layer's weights are fitted to; None where it is left alone."""
        alone = self._method == "affine"
        inputs = matrices_of(consumer)[0].shape[2]
        if not alone and inputs <= _MOST_INPUTS:
            return Rows(consumer, self._steps, self._sampling)
        found = self._by_channel(consumer)
        if found is None or found[0].shape[2] > _MOST_INPUTS:
            return None
        weight, kept = found
        if alone and kept.shape[1] == weight.shape[2]:
            return None  # it lost none of its inputs
        return Channels(consumer, self._steps, self._sampling, weight, kept, alone=alone)

    def _by_channel(self, consumer: Consumer) -> tuple[Tensor, Tensor] | None:
        """A layer's weights in the whole graph, of shape (groups, kept outputs, channels, kernel), and its channels.

        Returns:
            None where groups lose different channels.
        """
        use = consumer.uses[0]
        args = self._steps.whole.calls[use.vertex].args
        arg, shape = args["weight"], use.shape
        if type(arg) is not Attr:
            return None
        weight = self._steps.whole.tensor_at(arg.path).detach()
        masks = self._selection.masks_of(arg)
        outputs, channels = (1, 0) if shape.transposed else (0, 1)
        groups = args.get("groups", 1)
        if groups != shape.groups or (groups > 1 and shape.transposed):
            return None
        if masks[outputs] is not None:
            weight = weight.index_select(outputs, torch.from_numpy(np.flatnonzero(masks[outputs])).to(weight.device))
        matrices = shape.matrices(weight).double()
        inputs = weight.shape[channels]
        mask = masks[channels]
        kept = torch.arange(inputs) if mask is None else torch.from_numpy(np.flatnonzero(mask))
        return matrices.unflatten(2, (inputs, -1)), kept.to(weight.device).expand(groups, -1)

    def _fit(self, consumer: Consumer, upto: Places) -> None:
        """Find the weights of a layer, over all calls of it.

        What its later calls are given depends on its weights. So they are first taken to be given what they are in the
        whole graph, and then what the weights that were found give them, as long as these come closer.
        """
        before: float | None = None
        for attempt in range(_ATTEMPTS if len(consumer.uses) > 1 else 1):
            fitting = self._fitting(consumer)
            if fitting is None:
                return
            for number, values in self._steps.run(upto):
                fitting.look(consumer.uses[0], values, number)
                start = upto
                for use in consumer.uses[1:]:
                    stop = self._before(use)
                    values = self._steps.ahead(values, start, stop)
                    fitting.look(use, values, number, forced=attempt == 0)
                    start = stop
            solution = fitting.solve()
            if solution is None:
                return
            before = solution.before if before is None else before
            after = solution.after
            if solution.strength is None:
                break
            consumer.assign(solution.weight, solution.bias)
        if before is not None:
            self.errors.append(LayerError(consumer.path, before, after))

    def _before(self, use: Use) -> Places:
        """The places up to which the graphs run before a layer is looked at: the whole one has its output then."""
        whole, small = self._steps.places
        return whole[use.vertex] + 1, small[use.vertex] if self._method == "layerwise" else 0

    # -- queries and keys

    def _mix(self, product: Product, upto: Places) -> None:
        """Mix what is left of queries."""
        sums: list[PairMoments | None] = [None, None]
        left: list[Tensor]
        wide: list[Tensor]
        seen = 0
        whole, small = (model.calls[product.vertex].args for model in (self._steps.whole, self._small))
        factors = [(product.query, product.query_axis), (product.key, product.key_axis)]
        for number, values in self._steps.run(upto):
            pair = []
            for name, axis in factors:
                given = self._steps.kept(whole[name], self._steps.value(0, values, whole[name]), but=axis)
                if given is not None:
                    ours = self._steps.value(1, values, small[name])
                    pair.append((channels_last(ours, axis), channels_last(given, axis)))
            if len(pair) < 2:
                continue
            samples = self._steps.batches.samples[number]
            held = (torch.arange(samples) + seen) % HELD_OUT == HELD_OUT - 1
            for half, chosen in enumerate((~held, held)):
                if chosen.any():
                    left, wide = [
                        [_of_samples(value, chosen, samples) for value in both] for both in zip(*pair, strict=True)
                    ]
                    found = PairMoments.of(product, left, wide)
                    before = sums[half]
                    sums[half] = found if before is None else before + found
            seen += samples
        fitted, held_out = sums[0] or sums[1], sums[1] or sums[0]
        if fitted is None or held_out is None:
            return
        mixing, before_error, after_error, strength = solve_product(fitted, held_out)
        self.errors.append(LayerError(f"{product.consumer.path} ({product.vertex})", before_error, after_error))
        if strength is None:
            return
        product.assign(mixing)
        for _, values in self._steps.run(upto):
            product.replace(values[1], small[product.query], mixing)


def _of_samples(value: Tensor, chosen: Tensor, samples: int) -> Tensor:
    """What belongs to some of the samples, of which the first dimension holds as many places each."""
    return value.unflatten(0, (samples, -1))[chosen.to(value.device)].flatten(0, 1)
