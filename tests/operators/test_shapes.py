"""Formulas for shapes say what torch's kernels on meta tensors say, and never accept what these refuse."""

import contextlib
import random

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from tests.conversion.test_leaf_modules import CASES as LEAF_CASES
from tests.operators.test_operator_table import CASES as OPERATOR_CASES
from torchorbit.conversion.shapes import function_result, module_result
from torchorbit.errors import ArgumentError
from torchorbit.graph.shapes import called
from torchorbit.operators import LEAVES, OPERATORS
from torchorbit.operators.shapes import shape_of_call, shape_of_leaf


def on_meta(value):
    return pytree.tree_map(lambda item: item.to("meta") if isinstance(item, Tensor) else item, value)


def laid_out(value):
    """What a recording sees of results."""
    return [(tuple(t.shape), t.dtype, t.stride()) for t in pytree.tree_leaves(value) if isinstance(t, Tensor)]


class Compares(TorchFunctionMode):
    """Asks for a quick result of every call, and holds it to the kernel's."""

    def __init__(self):
        super().__init__()
        self.answered = set()

    def __torch_function__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        quick = function_result(func, args, kwargs or {})
        if quick is not None:
            assert laid_out(quick) == laid_out(result), getattr(func, "__name__", func)
            self.answered.add(func)
        return result


def strided(tensor):
    """The same numbers with the second dimension innermost in memory."""
    return tensor.transpose(1, -1).contiguous().transpose(1, -1) if tensor.dim() > 2 else tensor


# What torch has no kernel on meta for.
WITHOUT_KERNEL = {"fake_quantize_per_tensor_affine", "fake_quantize_per_channel_affine"}


@pytest.mark.parametrize("layout", [lambda tensor: tensor, strided], ids=["contiguous", "strided"])
@pytest.mark.parametrize(
    "name", [name for name, row in OPERATORS.items() if row.shape is not None and name not in WITHOUT_KERNEL]
)
def test_a_quick_result_is_that_of_the_kernel(name, layout):
    example, ways = OPERATOR_CASES.get(name) or (torch.rand(2, 4, 6) * 0.9, [getattr(torch, name, None)])
    inputs = example if isinstance(example, tuple) else (example,)
    inputs = [layout(item) if isinstance(item, Tensor) else item for item in on_meta(inputs)]
    with Compares() as compares:
        for way in filter(None, ways):
            # A way that makes a tensor of its own in forward mixes devices; a view may not take the layout.
            with contextlib.suppress(RuntimeError, NotImplementedError):
                way(*[item.clone() if isinstance(item, Tensor) else item for item in inputs])
    if OPERATORS[name].layout and layout is not strided:
        assert compares.answered, f"no call of {name} is answered by its formula"


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("layout", [lambda tensor: tensor, strided], ids=["contiguous", "strided"])
@pytest.mark.parametrize("name", [name for name in LEAVES if name != "Embedding"])
def test_a_quick_result_of_a_module_is_that_of_its_kernel(name, layout, training):
    example, configurations = LEAF_CASES[name]
    inputs = tuple([layout(item) for item in on_meta(example if isinstance(example, tuple) else (example,))])
    for args, kwargs in configurations:
        module = LEAVES[name].cls(*args, **kwargs).to("meta").train(training)
        quick = module_result(module, name, inputs)
        if quick is None:
            continue
        if getattr(module, "inplace", False):
            assert quick is inputs[0]
            continue
        if name == "BatchNorm1d" and training and module.momentum is None:  # its kernel counts batches
            continue
        if "Dropout" in name or name in ("Identity", "StochasticDepth"):  # it returns what it is given, in evaluation
            assert quick.untyped_storage()._cdata == inputs[0].untyped_storage()._cdata
            assert laid_out(quick) == laid_out(inputs[0])
            continue
        assert laid_out(quick) == laid_out(module(*inputs))


# Operator -> operands that fit, tensors as tuples of lengths, and what else may be given.
FITTING = {
    "add": {"input": [(4, 1, 6)], "other": [(4, 6), (), 2]},
    "div": {"input": [(4, 6), 2.0], "other": [(2, 4, 1)]},
    "exp": {"input": [(4, 6)]},
    "gelu": {"input": [(4, 6)], "approximate": ["none", "tanh", "other"]},
    "fake_quantize_per_tensor_affine": {
        "input": [(4, 6)], "scale": [0.1, 0.5], "zero_point": [0, 300, -200], "quant_min": [-128, 130], "quant_max": [127],
    },
    "fake_quantize_per_channel_affine": {
        "input": [(4, 6)], "scale": [(4,)], "zero_point": [(4,)], "axis": [0, 1, 2], "quant_min": [-128, 130], "quant_max": [127],
    },
    "hardtanh": {"input": [(4, 6)], "min_val": [-1.0, 2.0], "max_val": [1.0, -2.0]},
    "softshrink": {"input": [(4, 6)], "lambd": [0.5, -0.5]},
    "celu": {"input": [(4, 6)], "alpha": [0.5, 0.0]},
    "dropout": {"input": [(4, 6)], "p": [0.5, 1.5], "training": [True, False]},
    "softmax": {"input": [(4, 6), ()], "dim": [0, 1, -1, -3, 2]},
    "normalize": {"input": [(4, 6)], "dim": [0, 1, -2, 2]},
    "mean": {"input": [(4, 6, 2)], "dim": [None, 0, -1, 3, (0, 2), (0, 0), (1, -2)], "keepdim": [True, False]},
    "sum": {"input": [(4, 6, 2)], "dim": [None, 1, -4, (0, 2), (2, -1)], "keepdim": [True, False]},
    "matmul": {"input": [(2, 4, 6)], "other": [(2, 6, 3)]},
    "linear": {"input": [(2, 4, 6)], "weight": [(3, 6)], "bias": [(3,), None]},
    "scaled_dot_product_attention": {
        "query": [(2, 4, 6)], "key": [(2, 5, 6)], "value": [(2, 5, 3)], "attn_mask": [None, (4, 5), (2, 1, 5)],
        "is_causal": [False, True], "dropout_p": [0.0, 2.0],
    },
    "conv1d": {"input": [(2, 4, 9)], "weight": [(6, 4, 3), (6, 2, 3)], "bias": [None, (6,)], "padding": [0, 1, (1,)], "groups": [1, 2]},
    "conv2d": {
        "input": [(2, 4, 9, 7)], "weight": [(6, 2, 3, 3), (6, 4, 1, 2)], "bias": [None, (6,)], "stride": [1, 2, (2, 1), 0],
        "padding": [0, 1, (2, 0), "same", "valid", -1], "dilation": [1, 2, (1, 2), 4], "groups": [1, 2, 3],
    },
    "conv3d": {"input": [(2, 4, 5, 5, 5)], "weight": [(4, 1, 3, 3, 3)], "groups": [4, 1], "stride": [1, (1, 2, 3), 2]},
    "batch_norm": {
        "input": [(2, 4, 6), (1, 4)], "running_mean": [(4,), None], "running_var": [(4,), None], "weight": [(4,), None],
        "bias": [(4,), None], "training": [False, True],
    },
    "layer_norm": {"input": [(2, 4, 6)], "normalized_shape": [(6,), (4, 6), ()], "weight": [(6,), (4, 6), None], "bias": [(6,), None]},
    "rms_norm": {"input": [(2, 4, 6)], "normalized_shape": [(6,), (4, 6)], "weight": [(6,), (4, 6), None]},
    "group_norm": {"input": [(2, 4, 6), (1, 4)], "num_groups": [2, 4, 3, 0], "weight": [(4,), None], "bias": [(4,), None]},
    "cat": {"tensors": [[(2, 4, 6), (2, 3, 6)], [(2, 4), (2, 4)], [(0,), (2, 4)]], "dim": [0, 1, -1, 3]},
    "pad": {"input": [(2, 4)], "pad": [(1, 2), (1, -2, 0, 1), (0, -4), (1,), (1, 1, 1, 1, 1, 1)]},
    "clone": {"input": [(2, 4)]},
    "contiguous": {"input": [(2, 4)]},
    "detach": {"input": [(2, 4)]},
}  # fmt: skip


def drawn(rng, choices):
    """One of the choices, and now and then with other lengths than it should have."""
    choice = rng.choice(choices)
    if isinstance(choice, list):
        return [drawn(rng, [item]) for item in choice]
    if not isinstance(choice, tuple) or any(not isinstance(n, int) for n in choice):
        return choice
    shape = list(choice)
    if rng.random() < 0.25:
        change = rng.choice(["longer", "one", "more", "fewer"])
        if change == "more":
            shape.insert(0, rng.choice([1, 2]))
        elif shape and change == "fewer":
            shape.pop(rng.randrange(len(shape)))
        elif shape:
            shape[rng.randrange(len(shape))] = 1 if change == "one" else rng.choice([2, 3, 5, 7])
    return tuple(shape)


_OF_NUMBERS = {"dim", "normalized_shape", "pad", "stride", "padding", "dilation"}


def tensors_of(name, value):
    if name in _OF_NUMBERS:
        return value
    if isinstance(value, list):
        return [tensors_of("", item) for item in value]
    return torch.empty(value, device="meta") if isinstance(value, tuple) else value


@pytest.mark.parametrize("name", FITTING)
def test_a_formula_never_accepts_what_the_kernel_refuses(name):
    rng = random.Random(name)
    known = refused = 0
    for _ in range(300):
        args = {key: tensors_of(key, drawn(rng, choices)) for key, choices in FITTING[name].items()}
        if name == "batch_norm" and (args["running_mean"] is None) != (args["running_var"] is None):
            continue
        try:
            numbers = pytree.tree_map(lambda a: torch.rand(a.shape) if isinstance(a, Tensor) else a, args)
            expected = tuple(called(OPERATORS[name], numbers).shape)
        except (RuntimeError, ValueError, IndexError, TypeError, ZeroDivisionError, NotImplementedError):
            expected = None
        try:
            found = shape_of_call(name, args)
        except ArgumentError:
            assert expected is None, f"{args} would be refused, and the kernel gives {expected}"
            refused += 1
            continue
        except (TypeError, IndexError):  # whoever asks takes that for a refusal as well
            assert expected is None
            continue
        if found is not None:
            assert expected == found, args
            known += 1
    assert known >= 20


def test_every_formula_of_more_than_one_number_is_held_to_its_kernel():
    plain = OPERATORS["exp"].shape
    assert {name for name, row in OPERATORS.items() if row.shape not in (None, plain)} - set(FITTING) <= {
        "sub", "mul", "log_softmax",  # share theirs with add and softmax
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("layer_norm", {"input": (2, 4), "normalized_shape": (4,), "eps": 1j}),
        ("layer_norm", {"input": (2, 4), "normalized_shape": (4,), "eps": 10**400}),
        ("batch_norm", {"input": (2, 4), "running_mean": (4,), "running_var": (4,), "training": 1}),
        ("batch_norm", {"input": (2, 4), "running_mean": (4,), "running_var": (4,), "eps": True}),
        ("scaled_dot_product_attention", {"query": (2, 4, 6), "key": (2, 4, 6), "value": (2, 4, 6), "is_causal": 1}),
        ("normalize", {"input": (2, 4), "p": 2j}),
        ("sum", {"input": (2, 4), "dim": 1, "keepdim": 1}),
        ("add", {"input": (2, 4), "other": 1j}),
        ("mul", {"input": (2, 4), "other": 10**30}),
        ("conv1d", {"input": (2, 4, 8, 8), "weight": (6, 4, 3, 3)}),
        ("conv2d", {"input": (2, 4, 8), "weight": (6, 4, 3)}),
        ("pad", {"input": (2, 4), "pad": (1, 1), "value": 1j}),
    ],
)
def test_numbers_and_ranks_that_torch_may_refuse_are_left_to_its_kernel(name, args):
    args = {key: tensors_of(key, value) for key, value in args.items()}
    assert shape_of_call(name, args) is None


@pytest.mark.parametrize(
    ("name", "args", "shape", "match"),
    [
        ("BatchNorm2d", (4,), (2, 4, 5), "dimensions"),
        ("BatchNorm1d", (4,), (2, 5), "4"),
        ("Linear", (4, 3), (2, 5), "4 features"),
        ("LayerNorm", (4,), (2, 5), r"\(4,\)"),
        ("Conv2d", (4, 6, 3), (2, 5, 8, 8), "4 channels"),
        ("Conv2d", (4, 6, 9), (2, 4, 8, 8), "at least 1"),
        ("LSTM", (4, 3), (2, 5, 3), "4 features"),
    ],
)
def test_operands_that_do_not_fit_a_module_are_named(name, args, shape, match):
    module = LEAVES[name].cls(*args).to("meta")
    with pytest.raises(ArgumentError, match=match):
        shape_of_leaf(name, module, [torch.empty(shape, device="meta")])


def test_every_module_gives_its_operator_what_that_needs():
    for leaf in LEAVES.values():
        if leaf.operator:
            given = {*leaf.inputs, *leaf.tensors, *dict(leaf.values), *leaf.fixed}
            parameters = OPERATORS[leaf.operator].parameters
            assert given <= set(parameters), leaf.name
            needed = {name for name, default in parameters.items() if isinstance(default, type)}
            assert needed <= given, f"{leaf.name} lacks {needed - given}"
