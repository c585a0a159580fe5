"""What a model's code keeps outside of its modules is as it was after a conversion, and between its recordings."""

import collections
import contextvars
import copy
import functools
import gc
import logging
import sys
import threading
import types
import weakref

import pytest
import torch
from torch import nn

import torchorbit
from tests.models import Computes, assert_same, by_source, outcome

X = torch.randn(2, 6, 8)
TABLES = {}
SEEN = []
CURRENT = None
KEYS = weakref.WeakKeyDictionary()
SPACE = types.SimpleNamespace(table=None)
LOCAL = threading.local()
NESTED = collections.defaultdict(dict)
VARIABLE = contextvars.ContextVar("VARIABLE", default=None)
OUTER = nn.Linear(8, 8)


def table(length):
    return torch.arange(length) * 1.0


def in_a_closure():
    tables, last = {}, None

    def kept(length):
        nonlocal last
        last = tables.setdefault(length, table(length)) if last is None else last
        return last

    return kept


kept_in_a_closure = in_a_closure()


def kept_in_an_attribute(length):
    if not hasattr(kept_in_an_attribute, "table"):
        kept_in_an_attribute.table = table(length)
    return kept_in_an_attribute.table


def kept_in_a_default(length, tables={}, *, more=[]):  # noqa: B006
    if length not in tables:
        tables[length] = table(length)
        more.append(tables[length])
    return more[0]


kept_in_a_partial = functools.partial(kept_in_a_default, tables={}, more=[])


@functools.cache
def cached(length):
    return table(length)


@torch.no_grad()
def decorated(length):
    return TABLES.setdefault(length, table(length))


def remembering(function):
    found = {}

    @functools.wraps(function)
    def call(length):
        if length not in found:
            found[length] = function(length)
        return found[length]

    return call


remembered = remembering(table)


class Slots:
    __slots__ = ("table", "tables", "unset")

    def __init__(self):
        self.table, self.tables = None, {}

    def __call__(self, length):
        if self.table is None:
            self.unset = self.table = self.tables.setdefault(length, table(length))
        return self.unset


class Helper:
    shared = {}  # noqa: RUF012

    def __init__(self):
        self.own = {}

    def __call__(self, length):
        return self.own.setdefault(length, table(length)) + self.shared.setdefault(length, table(length))


HELPERS = {"first": [Helper()]}


class Single:
    only = None

    @classmethod
    def get(cls):
        cls.only = cls.only or cls()
        return cls.only

    def __init__(self):
        self.table = table(8)


class OfClasses(type):
    tables = {}  # noqa: RUF012

    def look(cls, length):
        return OfClasses.tables.setdefault(length, table(length))


class Looked(metaclass=OfClasses):
    pass


class Missing(dict):
    def __missing__(self, key):
        self[key] = table(key)
        return self[key]


MISSING = Missing()


def global_name(length):
    global CURRENT
    if CURRENT is None:
        CURRENT = table(length)
    return CURRENT


def global_item(length):
    if "MADE" not in globals():
        globals()["MADE"] = table(length)
    return globals()["MADE"]


def in_this_module(length):
    SEEN.append(length)
    return TABLES.setdefault(length, table(length)) + SEEN[0]


def in_a_namespace(length):
    if SPACE.table is None:
        SPACE.table = table(length)
    return SPACE.table


def in_a_thread(length):
    if not hasattr(LOCAL, "table"):
        LOCAL.table = table(length)
    return LOCAL.table


def in_a_variable(length):
    if VARIABLE.get() is None:
        VARIABLE.set(table(length))
    return VARIABLE.get()


def in_another_layer(length):
    if not hasattr(OUTER, "table"):
        OUTER.table = table(length)
    return OUTER(OUTER.table)


class Of(nn.Module):
    """A model that scales with what a function gives for a length."""

    of_class = {}  # noqa: RUF012
    current = None

    def __init__(self, function):
        super().__init__()
        self.layer = nn.Linear(8, 8)
        self.function = function

    def forward(self, x):
        return self.layer(x) * self.function(self, x.shape[-1])

    def method(self, length, tables={}):  # noqa: B006
        return tables.setdefault(length, table(length))

    def class_attribute(self, length):
        if type(self).current is None:
            type(self).current = self.of_class.setdefault(length, table(length))
        return Of.current

    def new_class_attribute(self, length):
        if not hasattr(Of, "made"):
            Of.made = table(length)
        return Of.made

    def of_this(self, length):
        if self not in KEYS:
            KEYS[self] = table(length)
        return KEYS[self]


class Below(Of):
    def method(self, length):
        return super().method(length)


FUNCTIONS = by_source(
    lambda m, n: kept_in_a_closure(n),
    lambda m, n: kept_in_an_attribute(n),
    lambda m, n: kept_in_a_default(n),
    lambda m, n: kept_in_a_partial(n),
    lambda m, n: cached(n),
    lambda m, n: decorated(n),
    lambda m, n: remembered(n),
    lambda m, n: HELPERS["first"][0](n),
    lambda m, n: Single.get().table,
    lambda m, n: Looked.look(n),
    lambda m, n: MISSING[n],
    lambda m, n: global_name(n),
    lambda m, n: global_item(n),
    lambda m, n: in_this_module(n),
    lambda m, n: in_a_namespace(n),
    lambda m, n: in_a_thread(n),
    lambda m, n: in_a_variable(n),
    lambda m, n: in_another_layer(n),
    lambda m, n: NESTED["tables"].setdefault(n, table(n)),
    lambda m, n: m.method(n),
    lambda m, n: getattr(m, "met" + "hod")(n),
    lambda m, n: m.class_attribute(n),
    lambda m, n: m.new_class_attribute(n),
    lambda m, n: m.of_this(n),
)


def on_meta():
    gc.collect()
    return [found for found in gc.get_objects() if issubclass(type(found), torch.Tensor) and found.is_meta]


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("cls", [Of, Below])
@pytest.mark.parametrize("function", FUNCTIONS)
def test_what_a_forward_keeps_elsewhere_is_as_it_was(function, cls):
    before = len(on_meta())
    model = cls(function)
    dag = torchorbit.convert(model, X)
    assert len(on_meta()) == before
    for training in (False, True):
        for x in (X, torch.randn(5, 6, 8)):
            assert_same(outcome(dag.train(training), x), outcome(model.train(training), x))


@pytest.mark.parametrize("make", [Slots, Helper, in_a_closure, lambda: functools.lru_cache(maxsize=4)(table)])
def test_what_objects_of_a_model_keep_is_as_it_was(make):
    model = Computes(lambda m, x: m.layer(x) * m.kept(x.shape[-1]), layer=nn.Linear(8, 8), kept=make())
    expected = outcome(Computes(lambda m, x: m.layer(x) * m.kept(8), layer=model.layer, kept=copy.deepcopy(make())), X)
    dag = torchorbit.convert(model, X)
    assert_same(outcome(model, X), expected)
    assert_same(outcome(dag, X), expected)


kept_in_another_closure = in_a_closure()


def test_what_is_kept_elsewhere_is_as_it_was_when_conversion_fails():
    failing = Computes(lambda x: x * kept_in_another_closure(8) * x.sum().item())
    with pytest.raises(torchorbit.ConversionError, match="number out of a tensor"):
        torchorbit.convert(failing, X)
    assert failing(X).device.type == "cpu"
    assert not torchorbit.explain(Computes(lambda m, x: m.inner(x), inner=failing), X).converts
    assert failing(X).device.type == "cpu"


def test_what_is_imported_meanwhile_keeps_nothing_of_a_recording(tmp_path, monkeypatch):
    (tmp_path / "imported_late.py").write_text("import torch\ncall = torch.nn.Module.__call__\n")
    monkeypatch.syspath_prepend(tmp_path)

    def imports(m, x):
        from imported_late import call  # noqa: F401

        return m.layer(x)

    torchorbit.convert(Computes(imports, layer=nn.Linear(8, 8)), X)
    assert sys.modules.pop("imported_late").call is nn.Module.__call__


def test_a_table_for_another_length_does_not_come_from_an_earlier_recording():
    tables = {}

    def positions(x):
        # Its lengths are no part of the key: what the first recording made would fit none of the others.
        if "table" not in tables or tables["table"].shape[0] != x.shape[1]:
            tables["table"] = torch.linspace(0, 1, x.shape[1])
        return x * tables["table"][:, None]

    model = Computes(positions)
    dag = torchorbit.convert(model, X)
    assert tables == {}
    for x in (X, torch.randn(3, 18, 8), torch.randn(2, 5, 8)):
        assert_same(dag(x), model(x))


def test_what_torch_and_python_keep_is_left_alone():
    made = Computes(lambda x: x * (logging.getLogger("of a model").level + 1))
    torchorbit.convert(made, X)
    assert "of a model" in logging.Logger.manager.loggerDict
