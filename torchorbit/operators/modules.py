"""The closed table of leaf modules: those that are a vertex of their own and are never looked into.

A saved graph names a leaf by its class's name in this table and holds the arguments that its constructor needs.
Classes of other libraries that do the same thing stand under the class here that takes their place in a file.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

from torch import nn

from torchorbit.errors import CheckpointError
from torchorbit.operators.schema import is_of_kind, kind_of
from torchorbit.operators.table import LEAVES

#: Name in a saved graph -> class.
LEAF_MODULES: dict[str, type[nn.Module]] = {name: leaf.cls for name, leaf in LEAVES.items()}

# Qualified name of a class elsewhere -> the leaf it is saved as, and its arguments there.
_STAND_INS: dict[str, tuple[str, Callable[[Any], dict[str, Any]]]] = {
    qualified: (name, arguments) for name, leaf in LEAVES.items() for qualified, arguments in leaf.stand_ins.items()
}

# Attributes that a subclass may override without changing what forward computes: they make, print, copy and save it.
_HARMLESS = {
    "__init__", "__doc__", "__module__", "__qualname__", "__dict__", "__weakref__", "__annotations__", "__constants__",
    "__annotate__", "__annotate_func__", "__annotations_cache__", "__firstlineno__", "__static_attributes__",
    "__parameters__", "__orig_bases__", "__abstractmethods__", "_abc_impl", "__slots__", "__repr__", "__setstate__",
    "__getstate__", "__reduce__", "__reduce_ex__", "__deepcopy__", "__copy__", "__dir__", "__init_subclass__",
    "__hash__", "__eq__", "_version", "_get_name", "extra_repr", "reset_parameters", "reset_running_stats",
    "state_dict", "load_state_dict", "_save_to_state_dict", "_load_from_state_dict", "_apply", "to", "float", "half",
    "bfloat16", "double", "cuda", "cpu", "dump_patches", "call_super_init",
}  # fmt: skip

_BY_CLASS = {cls: name for name, cls in LEAF_MODULES.items()}
_found: dict[type, str | None] = {}


def _find(cls: type) -> str | None:
    qualified = f"{cls.__module__}.{cls.__qualname__}"
    if qualified in _STAND_INS:
        return _STAND_INS[qualified][0]
    own: set[str] = set()
    for base in cls.__mro__:
        if base in _BY_CLASS:
            used = {*dir(base), *_constructor_arguments(_BY_CLASS[base]), *_members(base)} - _HARMLESS
            changed = [name for name in own & used if getattr(cls, name) is not getattr(base, name, None)]
            return None if changed else _BY_CLASS[base]
        own.update(vars(base))
    return None


def _members(cls: type) -> set[str]:
    """Names of instance attributes that a leaf class declares, or that its methods mention."""
    names = {name for base in cls.__mro__ for name in inspect.get_annotations(base)}
    for base in cls.__mro__[: cls.__mro__.index(nn.Module)]:
        for member in vars(base).values():
            if inspect.isfunction(member):
                names.update(member.__code__.co_names)
    return names


def leaf_name(module: nn.Module) -> str | None:
    """The name under which a module is a leaf, or None when it is none.

    A module is a leaf when its class is in the table, or inherits its forward unchanged from one that is, and it
    holds no submodules and no hooks that could change what it computes (a parametrization, say).
    """
    cls = type(module)
    try:
        name = _found[cls]
    except KeyError:
        name = _found[cls] = _find(cls)
    if name is None or module._modules or module._forward_pre_hooks or module._forward_hooks:
        return None
    return None if "forward" in module.__dict__ else name


def leaf_config(module: nn.Module, name: str) -> dict[str, Any]:
    """The constructor arguments with which a leaf can be made again; None is left out where it is the default."""
    qualified = f"{type(module).__module__}.{type(module).__qualname__}"
    if qualified in _STAND_INS:
        return _STAND_INS[qualified][1](module)
    names = config_arguments(name)
    config = {}
    for argument in names:
        value = getattr(module, LEAVES[name].kept_as.get(argument, argument))
        value = value is not None if argument == "bias" and not isinstance(value, bool) else value
        if value is not None or argument not in _none_by_default(name):
            config[argument] = value
    return config


@functools.cache
def _none_by_default(name: str) -> frozenset[str]:
    parameters = inspect.signature(LEAF_MODULES[name].__init__).parameters.values()
    return frozenset([p.name for p in parameters if p.default is None])


def make_leaf(name: str, config: dict[str, Any]) -> nn.Module:
    """Make a leaf on the meta device, without weights.

    Raises:
        CheckpointError: the name is not in the table, or the arguments do not fit the class.
    """
    if name not in LEAF_MODULES:
        raise CheckpointError(f"module class '{name}' is not in the table of leaf modules; nothing is imported by name")
    cls = LEAF_MODULES[name]
    allowed = config_arguments(name)
    unknown = sorted(set(config) - set(allowed))
    if unknown:
        raise CheckpointError(f"module class '{name}' takes no argument {unknown}; it takes {sorted(allowed)}")
    for argument, value in config.items():
        kind = kind_of(name, argument, leaf=True)
        if not is_of_kind(value, kind):
            expected = kind.replace("|", " or ")
            raise CheckpointError(f"module class '{name}': '{argument}' is {value!r:.100}, expected {expected}")
    if config.get("num_layers", 1) > _MAX_LAYERS:
        raise CheckpointError(f"module class '{name}': {config['num_layers']} layers, at most {_MAX_LAYERS} are made")
    bare = _bare(name)
    try:
        module = bare(**config, device="meta") if _has_tensors(name) else bare(**config)
    except Exception as error:
        raise CheckpointError(f"module class '{name}' refuses {config!r:.500}: {error}") from error
    module.__class__ = cls
    return module


_MAX_LAYERS = 256  # of a recurrent layer, which is made one by one


@functools.cache
def _bare(name: str) -> type[nn.Module]:
    """The class without its initial values, which take longer than all else on the meta device."""
    cls = LEAF_MODULES[name]
    return type(cls.__name__, (cls,), {"reset_parameters": lambda self: None, "__module__": cls.__module__})


@functools.cache
def _has_tensors(name: str) -> bool:
    return "device" in _all_arguments(name) or issubclass(LEAF_MODULES[name], nn.RNNBase)


@functools.cache
def _all_arguments(name: str) -> tuple[str, ...]:
    parameters = inspect.signature(LEAF_MODULES[name].__init__).parameters.values()
    return tuple([p.name for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)])


@functools.cache
def _constructor_arguments(name: str) -> tuple[str, ...]:
    skipped = {"self", "device", "dtype"}
    return tuple([found for found in _all_arguments(name) if found not in skipped and not found.startswith("_")])


def config_arguments(name: str) -> tuple[str, ...]:
    """The arguments of a leaf's constructor that a saved graph holds."""
    declared = LEAVES[name].constructor
    return _constructor_arguments(name) if declared is None else declared


@functools.cache
def forward_arguments(name: str) -> inspect.Signature:
    """The signature with which a leaf is called."""
    signature = inspect.signature(LEAF_MODULES[name].forward)
    return signature.replace(parameters=[p for key, p in signature.parameters.items() if key != "self"])
