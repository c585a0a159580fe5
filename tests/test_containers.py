"""Values in containers, and how functions go through them."""

from collections import OrderedDict, namedtuple
from types import MappingProxyType

import torch

from torchorbit.containers import (
    items_like,
    leaves,
    leaves_of,
    map_leaves,
    map_placed,
    map_plainly,
    map_together,
    placed_leaves,
)

Pair = namedtuple("Pair", ["left", "right"])
NESTED = {"a": (1, [2, Pair(3, slice(4, None))]), "b": {0: 5.0}}


def test_leaves_come_in_order_from_every_container():
    assert leaves(NESTED) == [1, 2, 3, 4, None, None, 5.0]
    assert leaves_of(int, NESTED) == [1, 2, 3, 4]
    assert leaves("text") == ["text"]
    assert leaves(()) == []


def test_a_shape_is_one_leaf():
    shape = torch.Size((2, 3))
    assert leaves((shape, [shape])) == [shape, shape]
    assert map_leaves(len, [shape]) == [2]


def test_a_map_keeps_the_containers():
    doubled = map_leaves(lambda leaf: leaf and 2 * leaf, NESTED)
    assert doubled == {"a": (2, [4, Pair(6, slice(8, None))]), "b": {0: 10.0}}
    assert type(doubled["a"][1][1]) is Pair
    assert map_leaves(abs, OrderedDict(a=-1)) == {"a": 1}
    assert map_leaves(abs, MappingProxyType({"a": -1})) == {"a": 1}


def test_return_types_of_torch_are_containers():
    largest = torch.arange(6.0).reshape(2, 3).max(1)
    shapes = map_leaves(lambda leaf: leaf.shape, largest)
    assert type(shapes) is type(largest)
    assert shapes.values == torch.Size((2,))


def test_a_plain_map_makes_tuples_and_dicts():
    plain = map_plainly(lambda leaf: leaf, NESTED)
    assert plain == {"a": (1, (2, (3, (4, None, None)))), "b": {0: 5.0}}
    assert type(plain["a"][1][1]) is tuple


def test_places_are_indices_from_the_outside():
    places = placed_leaves({"a": (1, [2]), "b": Pair(3, 4)})
    assert places == [(("a", 0), 1), (("a", 1, 0), 2), (("b", 0), 3), (("b", 1), 4)]
    assert map_placed(lambda leaf, index: (leaf, index), {"a": [7]}) == {"a": [(7, ("a", 0))]}


def test_values_are_gone_through_together():
    assert map_together(sum, [{"a": (1, 2), "b": Pair(3, 4)}, {"b": (30, 40), "a": [10, 20]}]) == {
        "a": (11, 22),
        "b": Pair(33, 44),
    }


def test_where_values_have_other_places_their_containers_come_together():
    met = []
    map_together(met.append, [((1, 2), [3]), ((1,), None)])
    assert met == [[(1, 2), (1,)], [[3], None]]


def test_items_stand_in_the_order_of_the_other_container():
    assert items_like({"a": 1, "b": 2}, {"b": 0, "a": 0}) == [2, 1]
    assert items_like({"a": 1}, {"b": 0}) is None
    assert items_like((1, 2, 3), slice(None)) is None
    assert items_like([1], (2,)) == [1]
    assert items_like({0: 1}, (2,)) is None
