"""`DagModule`: a model as a directed acyclic graph that is still an ordinary ``nn.Module``."""

from __future__ import annotations

import dataclasses
import linecache
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary, finalize

from tabulate import tabulate
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from typing_extensions import Self

from torchorbit.arguments import Ref
from torchorbit.errors import ArgumentTypeError, GraphRunError
from torchorbit.graph import codegen
from torchorbit.graph.vertices import InputVertex, ModuleVertex, OperatorVertex, Vertex
from torchorbit.records import RecordClass


@dataclasses.dataclass(frozen=True, slots=True)
class Graph:
    """Vertices in the order in which they run, and what is returned.

    Attributes:
        vertices: in the order in which they run.
        output: what is returned, in terms of them.
        shapes: vertex name -> the shape of its result when it was recorded (a ``torch.Size``, or containers of
            them), where that is known. A graph is the same whatever they are.
    """

    vertices: tuple[Vertex, ...]
    output: Any
    shapes: dict[str, Any] = dataclasses.field(default_factory=dict, compare=False)

    @property
    def inputs(self) -> tuple[InputVertex, ...]:
        """The inputs, in the order of the forward's parameters."""
        return tuple([vertex for vertex in self.vertices if isinstance(vertex, InputVertex)])

    def __deepcopy__(self, memo: dict[int, Any]) -> Graph:
        return self  # nothing in it changes


@dataclasses.dataclass(frozen=True, slots=True)
class Provenance:
    """How a graph was recorded, kept on the outermost `DagModule`.

    Attributes:
        source: class of the model that was converted.
        mode: ``"both"`` when training and evaluation take the same path or their differences are in the graph;
            ``"evaluation"`` when only the path of evaluation could be recorded.
        training_differs: paths of modules that take another path in training that is not in the graph.
        always_evaluation: paths of modules that stay in evaluation whatever `train` is told, frozen batch norms say.
        always_training: paths of modules that stay in training.
        free_batch: whether any batch size works; otherwise only the recorded one does.
        free_lengths: whether the model itself runs at other spatial sizes (or sequence lengths) on the same path,
            so that those sizes are free in the graph, too.
        fixed_dims: dimensions whose lengths are fixed although others are free: other lengths were tried there, and did
            not take the same path.
        fixed_lengths: for every tensor among the inputs the dimensions in which no other length was recorded, so that
            nothing is known of others; empty where the graph was recorded before this was kept.
        fixed_by: where lengths are not all free, the path of the module that fixes them, and what became of other
            lengths there.
        batch_fixed_by: where the batch size is not free, the same for it.
        free_dtype: whether dtypes follow the model's; otherwise some are fixed to those recorded.
        input_shapes: shapes of the tensors that the model was recorded with.
        input_dtypes: their dtypes, as ``"float32"``.
        torch: version of torch.
    """

    source: str = ""
    mode: str = "both"
    training_differs: tuple[str, ...] = ()
    always_evaluation: tuple[str, ...] = ()
    always_training: tuple[str, ...] = ()
    free_batch: bool = True
    free_lengths: bool = True
    fixed_dims: tuple[int, ...] = ()
    fixed_lengths: tuple[tuple[int, ...], ...] = ()
    fixed_by: tuple[str, str] = ("", "")
    batch_fixed_by: tuple[str, str] = ("", "")
    free_dtype: bool = True
    input_shapes: tuple[tuple[int, ...], ...] = ()
    input_dtypes: tuple[str, ...] = ()
    torch: str = ""


class Container(nn.Module):
    """Holds parameters, buffers and submodules at a path of the source model that no vertex calls as a whole."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Refuse to run."""
        raise ArgumentTypeError("a Container only holds submodules; call the DagModule that it belongs to")


class DagModule(nn.Module):
    """A model as a directed acyclic graph.

    Vertices are inputs, modules (the source's own leaf modules, and nested `DagModule`s for its blocks) and
    operators. The forward is generated from them. Everything that works on an ``nn.Module`` works: training, moving,
    ``copy.deepcopy``, pickling, ``torch.compile``, ``torch.export``; ``state_dict()`` has the keys of the source.

    Made by `torchorbit.convert` and `torchorbit.load`.

    Attributes:
        graph: the vertices and the output.
        provenance: how the graph was recorded; None in nested blocks.
        manifest: what the checkpoint that it comes from says of it (`zoo.manifest.Manifest`); pruning passes it on.
        history: what was removed since it was converted or loaded (`torchorbit.removal.history.History`); None where
            nothing was.
    """

    graph: Graph
    provenance: Provenance | None
    manifest: Any = None
    history: Any = None
    _levels: Any = None  # what `torchorbit.graph.one_level.one_level` keeps

    @property
    def vertices(self) -> tuple[Vertex, ...]:
        """The vertices of this level, in the order in which they run."""
        return self.graph.vertices

    @property
    def code(self) -> str:
        """The generated source of the forward."""
        return codegen.generate(self.graph.vertices, self.graph.output)[0]

    def table(self) -> str:
        """The vertices of this level as a table: name, kind, what is called, and arguments."""
        rows = []
        for vertex in self.graph.vertices:
            if isinstance(vertex, InputVertex):
                rows.append((vertex.name, "input", "", ""))
                continue
            only = f" in {vertex.mode}" if vertex.mode else ""
            if isinstance(vertex, ModuleVertex):
                module = self.get_submodule(vertex.target)
                kind = vertex.leaf or ("block" if isinstance(module, DagModule) else type(module).__name__)
                args = ", ".join([codegen.argument(a) for a in vertex.args])
                rows.append((vertex.name, kind + only, vertex.target, args))
            else:
                args = ", ".join([f"{name}={codegen.argument(a)}" for name, a in vertex.args.items()])
                rows.append((vertex.name, "operator" + only, vertex.operator, args))
        rows.append(("", "output", "", codegen.argument(self.graph.output)))
        return tabulate(rows, headers=("vertex", "kind", "calls", "arguments"))

    def all_vertices(self) -> Iterator[tuple[str, Vertex]]:
        """Every vertex below this level with its path, blocks joined by ``/``; a block comes before its content."""
        for vertex in self.graph.vertices:
            yield vertex.name, vertex
            if isinstance(vertex, ModuleVertex):
                inner = self.get_submodule(vertex.target)
                if isinstance(inner, DagModule):
                    for path, deeper in inner.all_vertices():
                        yield f"{vertex.name}/{path}", deeper

    def get_submodule(self, target: str) -> nn.Module:
        """A submodule by its dotted path, even one that has the name of a method of this class.

        Raises:
            AttributeError: there is none of that path.
        """
        module: nn.Module = self
        for part in target.split(".") if target else ():
            child = module._modules.get(part)
            if child is None:
                raise AttributeError(f"there is no submodule '{target}'")
            module = child
        return module

    def flatten(self) -> DagModule:
        """The same model without nested blocks.

        Returns:
            A new `DagModule` of one level. Leaf modules and parameters are shared with this one, and
            ``state_dict()`` keeps its keys.
        """
        from torchorbit.graph.flatten import flatten

        return flatten(self)

    def save(self, folder: str | Path) -> None:
        """Save the model as data: ``graph.json``, ``model.safetensors`` and a ``README.md``. No code, no pickle.

        Args:
            folder: where to; made if absent. Files of an earlier save are replaced, each in one step.

        Raises:
            CheckpointError: the graph holds something that the format has no name for (a class listed in
                ``atomic``, say) or weights that are on the meta device.
        """
        from torchorbit.graph.saving import save

        save(self, folder)

    def save_pretrained(self, folder: str | Path, **details: Any) -> Any:
        """Save the model as a checkpoint: what `save` writes, and what there is to know about it.

        Args:
            folder: where to; made if absent, and put in place as a whole.
            **details: name, source, step, accuracy, preprocessing and dtype, as `zoo.checkpoint.save_checkpoint` takes
                them. What the model's ``manifest`` says is kept where nothing else is given.

        Returns:
            What was written about it, a `zoo.manifest.Manifest`.

        Raises:
            CheckpointError: as `save`; or the folder holds something else.
        """
        from torchorbit.sharing import save_pretrained

        return save_pretrained(self, folder, **details)

    def push_to_hub(
        self,
        repo: str,
        *,
        hub: str | Path | None = None,
        private: bool = False,
        revision: str | None = None,
        tag: str | None = None,
        token: str | None = None,
        **details: Any,
    ) -> Any:
        """Publish the model as a checkpoint.

        Args:
            repo: ``"organization/name"``.
            hub: a folder, or the address of a hub; by default the Hugging Face Hub.
            private: make a new repository one that only its owner sees.
            revision: branch to publish to; ``main`` by default.
            tag: name to give the publication.
            token: by default the one that ``hf auth login`` keeps.
            **details: as for `save_pretrained`.

        Returns:
            Which commit it is, and what it changed: a `zoo.hubs.Publication`.

        Raises:
            CheckpointError: as `save`.
            HubError: the hub refuses, or cannot be reached.
        """
        from torchorbit.sharing import push_to_hub

        return push_to_hub(self, repo, hub=hub, private=private, revision=revision, tag=tag, token=token, **details)

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        state = self.__dict__.copy()
        graph, provenance = state.pop("graph"), state.pop("provenance")
        return (blank, (graph, provenance), state)


class _Root(DagModule):
    """The outermost level: it says which vertex failed, and lets no other size through that was not recorded."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        try:
            result = super().__call__(*args, **kwargs)
        except (RuntimeError, IndexError, ValueError, TypeError) as error:
            vertex = _failing_vertex(error)
            if vertex is None or isinstance(error, GraphRunError):
                raise
            failed = dict(self.all_vertices()).get(vertex)
            of_values = isinstance(failed, OperatorVertex) and type(failed.args.get("condition")) is Ref
            message = str(error) if of_values else _explained(self, error, args, kwargs)
            raise GraphRunError(vertex, message) from error
        self._refuse_other_sizes(args, kwargs)
        return result

    def train(self, mode: bool = True) -> Self:
        """Set the mode of all modules but those that the source model leaves in one."""
        super().train(mode)
        provenance = self.provenance
        if provenance is not None and (provenance.always_evaluation or provenance.always_training):
            modules = dict(self.named_modules(remove_duplicate=False))
            for paths, training in ((provenance.always_evaluation, False), (provenance.always_training, True)):
                for path in paths:
                    if path in modules:
                        modules[path].training = training
        return self

    def _refuse_other_sizes(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Every vertex ran, but numbers that follow from a fixed size are those of the recorded one."""
        provenance = self.provenance
        if provenance is None or not provenance.input_shapes:  # a block that was made a graph of its own
            return
        given, recorded = _shapes(self, args, kwargs), provenance.input_shapes
        fixed = slice(1, None) if not provenance.free_lengths else slice(0)

        def kept(shape: tuple[int, ...]) -> tuple[int, ...]:
            return (*shape[fixed], *[shape[dim] for dim in provenance.fixed_dims if dim < len(shape)])

        some_fixed = not provenance.free_lengths or provenance.fixed_dims
        if some_fixed and list(map(kept, given)) != list(map(kept, recorded)):
            module, reason = provenance.fixed_by
            raise GraphRunError(
                module.replace(".", "/"),
                f"the size is fixed: recorded with inputs {recorded}, given {given}; with another one the source model "
                f"says: {reason}",
            )
        if not provenance.free_batch and [shape[:1] for shape in given] != [shape[:1] for shape in recorded]:
            raise GraphRunError(provenance.batch_fixed_by[0].replace(".", "/"), _fixed_batch(provenance, given))
        if len(given) != len(recorded):  # one that nothing reads was left out
            return
        for position, (shape, like, dims) in enumerate(zip(given, recorded, provenance.fixed_lengths, strict=False)):
            for dim in dims:
                if dim >= len(shape) or shape[dim] != like[dim]:
                    name, tensor = _named(self, args, kwargs)[position]
                    raise GraphRunError(
                        name,
                        f"the length of {tensor} in dimension {dim} is fixed: recorded with {like}, given {shape}; no "
                        f"other length was recorded there. Give it {like[dim]} there, or convert the model once more "
                        "with an example of the other length",
                    )


codegen.SHADOWED.update(name for name in dir(_Root) if name not in dir(nn.Module))
codegen.SHADOWED.update(("graph", "provenance", "_kept"))


def _shapes(root: DagModule, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[tuple[int, ...]]:
    """Shapes of all tensors among the inputs, in the order of the graph's inputs."""
    named = [kwargs[vertex.name] for vertex in root.graph.inputs if vertex.name in kwargs]
    return [tuple(leaf.shape) for leaf in pytree.tree_leaves((args, named)) if isinstance(leaf, Tensor)]


def _named(root: DagModule, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[tuple[str, str]]:
    """For all tensors among the inputs, in the order of `_shapes`, the name of the input, and where in it they are."""
    names = [vertex.name for vertex in root.graph.inputs]
    given = [*zip(names, args, strict=False), *[(name, kwargs[name]) for name in names if name in kwargs]]
    return [
        (name, f"'{name}{pytree.keystr(path)}'")
        for name, value in given
        for path, leaf in pytree.tree_flatten_with_path(value)[0]
        if isinstance(leaf, Tensor)
    ]


def _failing_vertex(error: BaseException) -> str | None:
    """The path of the vertex at which an error was raised, from the lines of the generated code."""
    names = []
    trace = error.__traceback__
    while trace is not None:
        code = trace.tb_frame.f_code
        graph = _graphs.get(code.co_filename)
        if graph is not None:
            # The first line is the signature; a fixed input has a line of its own, every other vertex has one.
            lines = [v for v in graph.vertices if isinstance(v, InputVertex) and v.fixed]
            lines += [v for v in graph.vertices if not isinstance(v, InputVertex)]
            position = trace.tb_lineno - 2
            if 0 <= position < len(lines):
                names.append(lines[position].name)
        trace = trace.tb_next
    return "/".join(names) if names else None


def _explained(root: DagModule, error: BaseException, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    message = str(error)
    provenance = root.provenance
    if provenance is None:
        return message
    given = tuple(_shapes(root, args, kwargs))
    if given == provenance.input_shapes:
        return message
    other_batch = any(a[:1] != b[:1] for a, b in zip(given, provenance.input_shapes, strict=False))
    other_lengths = any(a[1:] != b[1:] for a, b in zip(given, provenance.input_shapes, strict=False))
    if other_lengths:
        message += f" (this vertex fixes the size: recorded with inputs {provenance.input_shapes}, given {given})"
    elif other_batch and not provenance.free_batch:
        message += f" ({_fixed_batch(provenance, given)})"
    return message


def _fixed_batch(provenance: Provenance, given: Sequence[tuple[int, ...]]) -> str:
    reason = provenance.batch_fixed_by[1]
    says = f"; with another one the source model says: {reason}" if reason else ""
    return f"the batch size is fixed: recorded with inputs {provenance.input_shapes}, given {tuple(given)}{says}"


# Equal code is compiled once: the blocks of a transformer share one class.
_classes: WeakValueDictionary[tuple[type, str], type[DagModule]] = WeakValueDictionary()
_graphs: WeakValueDictionary[str, Any] = WeakValueDictionary()


class _Vertices:
    """What `_failing_vertex` needs of a graph; lives as long as the generated class."""

    def __init__(self, vertices: tuple[Vertex, ...]):
        self.vertices = vertices


def _class_for(graph: Graph, base: type[DagModule]) -> type[DagModule]:
    source, types = codegen.generate(graph.vertices, graph.output)
    key = (base, source)
    cls = _classes.get(key)
    if cls is None or types:
        for kind in types.values():
            if isinstance(kind, RecordClass):
                kind.register()
        forward = codegen.compile_forward(source, types)
        filename = forward.__code__.co_filename
        cls = type("DagModule", (base,), {"forward": forward, "__module__": DagModule.__module__})
        kept = _Vertices(graph.vertices)
        cls._kept = kept  # type: ignore[attr-defined]
        _graphs[filename] = kept
        finalize(cls, linecache.cache.pop, filename, None)
        if not types:
            _classes[key] = cls
    return cls


def blank(graph: Graph, provenance: Provenance | None) -> DagModule:
    """A `DagModule` with no parameters and submodules yet. With a provenance it is an outermost one."""
    cls = _class_for(graph, DagModule if provenance is None else _Root)
    dag = cls.__new__(cls)
    nn.Module.__init__(dag)
    dag.__dict__["graph"] = graph
    dag.__dict__["provenance"] = provenance
    return dag


def rewrite(dag: DagModule, graph: Graph) -> None:
    """Let a level compute another graph, with the parameters and submodules that it has."""
    dag.__class__ = _class_for(graph, DagModule if dag.provenance is None else _Root)
    dag.__dict__["graph"] = graph
