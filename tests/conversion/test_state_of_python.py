"""What a forward keeps in Python from pass to pass, no graph keeps: it is refused where it has an effect."""

import itertools
import random
import time

import numpy as np
import pytest
import torch
from torch import nn

import torchorbit
from tests.models import assert_same

X = torch.randn(2, 4)
COUNT = 0
COUNTS = {"passes": 0}
MEAN = torch.zeros(())
GENERATOR = random.Random(0)
GENERATOR_OF_NUMPY = np.random.default_rng(0)
NUMBERS = itertools.count(1)


class Keeps(nn.Module):
    """A model with plain attributes, whose forward is a function of itself and its input."""

    def __init__(self, function, **attributes):
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.function = function
        for name, value in attributes.items():
            setattr(self, name, value)

    def forward(self, x):
        return self.function(self, self.linear(x))


def counted(model, x):
    model.count += 1
    return x * model.count


def counted_in_a_dict(model, x):
    model.counts["passes"] = model.counts.get("passes", 0) + 1
    return x * model.counts["passes"]


def counted_in_a_list(model, x):
    model.passes.append(0)
    return x * len(model.passes)


def counted_in_a_global(model, x):
    global COUNT
    COUNT += 1
    return x * COUNT


def counted_in_a_dict_of_a_module(model, x):
    COUNTS["passes"] += 1
    return x * COUNTS["passes"]


def otherwise_at_first(model, x):
    first, model.first = model.first, False
    return x * 2 if first else x


def every_third_time(model, x):
    model.count = (model.count + 1) % 3
    return x if model.count else x * 2


def averaged(model, x):
    model.mean = 0.9 * model.mean + x.mean()
    return x - model.mean


def averaged_in_a_global(model, x):
    global MEAN
    MEAN = 0.9 * MEAN + x.mean()
    return x - MEAN


def with_the_last_input(model, x):
    last, model.last = model.last, x
    return x if last is None else x - last


def with_the_first_input(model, x):
    model.last = x if model.last is None else model.last
    return x - model.last


def with_a_bank(model, x):
    model.bank = torch.cat([model.bank, x])
    return x + model.bank.mean()


def closure():
    count = 0

    def function(model, x):
        nonlocal count
        count += 1
        return x * count

    return function


def banked():
    model = Keeps(with_a_bank)
    model.register_buffer("bank", torch.zeros(2, 4))
    return model


REFUSED = {
    "a counter": (lambda: Keeps(counted, count=0), "'count', which was 0 and is 1"),
    "a counter in a dict": (lambda: Keeps(counted_in_a_dict, counts={}), r"'counts\['passes'\]'"),
    "a list": (lambda: Keeps(counted_in_a_list, passes=[]), r"'passes\[0\]'"),
    "a global": (lambda: Keeps(counted_in_a_global), r"test_state_of_python\.COUNT', which was 0 and is 1"),
    "a dict of a module": (lambda: Keeps(counted_in_a_dict_of_a_module), r"COUNTS\['passes'\]'"),
    "a closure": (lambda: Keeps(closure()), "a variable of a closure"),
    "a flag": (lambda: Keeps(otherwise_at_first, first=True), "'first', which was True and is False"),
    "a rhythm": (lambda: Keeps(every_third_time, count=0), "'count'"),
    "a mean": (lambda: Keeps(averaged, mean=torch.zeros(())), "'mean', which was a tensor"),
    "a mean in a global": (lambda: Keeps(averaged_in_a_global), "MEAN', which was a tensor"),
    "the last input": (lambda: Keeps(with_the_last_input, last=None), "'last', which was None"),
    "the first input": (lambda: Keeps(with_the_first_input, last=None), "'last', which was None"),
    "a bank": (lambda: Keeps(with_a_bank, bank=torch.zeros(2, 4)), "'bank'"),
    "a bank in a buffer": (banked, "'bank'"),
    "a random number": (lambda: Keeps(lambda model, x: x * random.random()), "random numbers of Python or numpy"),
    "a random path": (lambda: Keeps(lambda model, x: -x if random.random() < 0.01 else x), "random numbers of Python"),
    "a random integer": (lambda: Keeps(lambda model, x: x + random.randint(0, 1)), "random numbers of Python or numpy"),
    "numpy's": (lambda: Keeps(lambda model, x: x * float(np.random.rand())), "random numbers of Python or numpy"),
    "its own": (lambda: Keeps(lambda model, x: x + GENERATOR.randint(0, 1)), "random numbers of Python or numpy"),
    "numpy's own": (lambda: Keeps(lambda model, x: x + GENERATOR_OF_NUMPY.integers(2)), "random numbers of Python or"),
    "the time": (lambda: Keeps(lambda model, x: x * time.time()), "it may read the time"),
    "an iterator": (lambda: Keeps(lambda model, x: x * next(NUMBERS)), "count by an iterator"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_model_that_computes_something_else_in_the_next_pass_is_refused(name):
    make, reason = REFUSED[name]
    with pytest.raises(torchorbit.ConversionError, match=reason):
        torchorbit.convert(make(), X)


def test_the_error_names_the_module_the_line_and_the_remedy():
    model = nn.Sequential(nn.Linear(4, 4), Keeps(counted, count=0))
    with pytest.raises(torchorbit.ConversionError, match=r"'1\.count'.*register_buffer") as caught:
        torchorbit.convert(model, X)
    assert caught.value.module == "1"
    assert "test_state_of_python.py" in caught.value.line
    assert model[1].count == 0


def test_what_is_random_in_training_alone_is_left_to_evaluation():
    model = Keeps(lambda model, x: x if model.training and random.random() < 0.1 else x * 2)
    with pytest.warns(UserWarning, match="recorded in evaluation mode"):
        dag = torchorbit.convert(model, X)
    assert_same(dag.eval()(X), model.eval()(X))


def test_generators_of_random_numbers_are_left_as_they_were():
    before = GENERATOR.getstate(), GENERATOR_OF_NUMPY.bit_generator.state
    for model in (Keeps(lambda model, x: x * GENERATOR.random()), Keeps(lambda m, x: x + GENERATOR_OF_NUMPY.random())):
        with pytest.raises(torchorbit.ConversionError):
            torchorbit.convert(model, X)
    assert (GENERATOR.getstate(), GENERATOR_OF_NUMPY.bit_generator.state) == before


def counted_for_nobody(model, x):
    model.count += 1
    return x * 2


def counted_in_training(model, x):
    model.count += model.training
    return x * 2


def cached(model, x):
    if model.table is None:
        model.table = torch.arange(x.shape[1]).to(x)
    return x + model.table


def cached_by_size(model, x):
    if x.shape[1] not in model.tables:
        model.tables[x.shape[1]] = x.new_ones(x.shape[1]) * torch.arange(x.shape[1])
    return x + model.tables[x.shape[1]]


def shown(model, x):
    model.map = x.softmax(-1)
    return x * model.map


def measured(model, x):
    model.width = x.shape[1]
    return x.reshape(-1, model.width)


def averaged_in_a_buffer(model, x):
    model.mean = 0.9 * model.mean + x.mean()
    return x - model.mean


def seeded(model, x):
    return x * random.Random(3).random()


def buffered():
    model = Keeps(averaged_in_a_buffer)
    model.register_buffer("mean", torch.zeros(()))
    return model


CONVERTED = {
    "a counter that nobody reads": lambda: Keeps(counted_for_nobody, count=0),
    "a counter of training": lambda: Keeps(counted_in_training, count=0),
    "a table": lambda: Keeps(cached, table=None),
    "tables by size": lambda: Keeps(cached_by_size, tables={}),
    "what is shown": lambda: Keeps(shown, map=None),
    "a size": lambda: Keeps(measured, width=0),
    "a buffer": buffered,
    "a generator with a seed": lambda: Keeps(seeded),
}


@pytest.mark.parametrize("name", CONVERTED)
def test_what_has_no_effect_in_the_next_pass_converts(name):
    model = CONVERTED[name]().eval()
    dag = torchorbit.convert(model, X)
    for x in (X, torch.randn(5, 4)):
        fresh = CONVERTED[name]().eval()
        fresh.load_state_dict(model.state_dict())
        assert_same(dag(x), fresh(x))
