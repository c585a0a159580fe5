"""What ENOT's tools tell."""

import operator
import re
from functools import reduce

import pytest
import timm
import torch
import torchvision.models

import torchorbit
from tests.migrating.helpers import FILTERS_OF_ENOT, parameters


def test_enot_module_dependencies(mobilenet):
    _, _, orbits = mobilenet
    found = torchorbit.inspect.module_dependencies(orbits, "features.17.conv.1.0")
    assert found.module == "features.17.conv.1.0"
    assert found.operators == ("conv2d",)
    assert len(found.vertices) == 1
    assert (len(found.orbits), len(found.frozen)) == (1, 0)
    (entry,) = found.orbits
    assert found.labels == ([None, f"orbit {entry.orbit.index}: 960", None, None],)
    assert {member.name for member in entry.members} == {"features.17.conv.1.0", "features.17.conv.0.0"}
    assert [user.name for user in entry.users] == ["features.17.conv.2"]
    assert torchorbit.inspect.module_dependencies(orbits, "classifier.1").labels == ([None, "frozen: 10"],)
    shown = str(found)
    for text in (
        "features.17.conv.1.0",
        "Conv2d(960, 960, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1), groups=960, bias=False)",
        "Conv2d(160, 960, kernel_size=(1, 1), stride=(1, 1), bias=False)",
        "Conv2d(960, 320, kernel_size=(1, 1), stride=(1, 1), bias=False)",
    ):
        assert text in shown


def test_enot_what_tables_show(mobilenet):
    _, _, orbits = mobilenet
    names = {}
    for show in ("layers", "parameters", "all"):
        found = torchorbit.inspect.module_dependencies(orbits, "features.18.0", show=show)
        names[show] = {member.name for entry in found.orbits for member in entry.members}
    assert "features.18.0" in names["layers"]
    assert "features.18.0.weight" in names["parameters"] - names["layers"]
    assert "features.18.2" in names["all"] - names["parameters"]
    with pytest.raises(ValueError, match="show"):
        torchorbit.inspect.module_dependencies(orbits, "features.18.0", show="nodes")


def test_enot_unprunable_groups(mobilenet):
    _, _, orbits = mobilenet
    groups = torchorbit.inspect.frozen_groups(orbits)
    image, classes = groups
    assert (image.width, image.slices[0].tensor, image.slices[0].dim) == (3, "features.0.0.weight", 1)
    assert [name.replace("__", ".") for name in image.sinks] == ["features.0.0"]
    assert classes.width == 10
    assert "channels of the model's input" in str(groups)
    places = [group for group in torchorbit.inspect.frozen_groups(orbits, space=True) if group.space]
    assert any(
        piece.tensor == "features.0.0.weight" and piece.dim in (2, 3) for group in places for piece in group.slices
    )


def test_enot_label_dependencies(mobilenet):
    _, _, orbits = mobilenet
    (orbit,) = orbits.of_tensor("features.18.0.weight")
    found = torchorbit.inspect.unit_dependencies(orbit, 1202, show="all")
    names = [member.name for member in found.members]
    expected = [
        "features.18.0.weight", "features.18.0", "features.18.1.running_mean", "features.18.1.running_var",
        "features.18.1.weight", "features.18.1.bias", "features.18.1", "features.18.2", "adaptive_avg_pool2d",
        "flatten", "classifier.0", "classifier.1.weight",
    ]  # fmt: skip
    assert [name for name in names if name in expected] == expected
    assert "adaptive_avg_pool2d" in str(found)


def test_enot_label_filters(mobilenet):
    model, _, orbits = mobilenet
    (orbit,) = orbits.of_tensor("features.18.0.weight")
    found = torchorbit.inspect.unit_slices(orbit, 1202)
    assert [(piece.tensor, piece.shape, piece.mapping) for piece in found] == FILTERS_OF_ENOT
    assert all(piece.values is None for piece in found)
    values = torchorbit.inspect.unit_slices(orbit, 1202, values=True)
    assert torch.equal(values[0].values, model.features[18][0].weight[1202:1203])
    assert torch.equal(values[-1].values, model.classifier[1].weight[:, 1202:1203])
    assert "[[(1202, 0)], None, None, None]" in str(found)


def test_enot_nodes_and_modules(mobilenet):
    _, dag, orbits = mobilenet
    (vertex,) = torchorbit.inspect.vertices_of_module(orbits, "features.5.conv.1.0")
    assert torchorbit.inspect.module_of_vertex(orbits, vertex) == "features.5.conv.1.0"
    assert dag.get_submodule("features.5.conv.1.0").groups > 1
    # Modules without weights have one, too.
    (relu,) = torchorbit.inspect.vertices_of_module(dag, "features.18.2")
    assert torchorbit.inspect.module_of_vertex(dag, relu) == "features.18.2"
    with pytest.raises(ValueError, match=r"there is no module 'features\.99'"):
        torchorbit.inspect.vertices_of_module(dag, "features.99")
    with pytest.raises(ValueError, match="belongs to no module"):
        torchorbit.inspect.module_of_vertex(dag, "flatten")


def test_enot_labels_are_units(mobilenet):
    """A label is an orbit and a position in it; what ENOT prints of a group stands in the table."""
    _, _, orbits = mobilenet
    assert orbits.units == sum(orbit.width for orbit in orbits)
    assert reduce(operator.add, [len(orbit) for orbit in orbits]) == orbits.units
    lines = str(orbits).splitlines()
    assert len([line for line in lines if " channels " in line]) == len(orbits)
    assert re.search(r"\b960\s+channels", str(orbits))


@pytest.mark.parametrize("name", ["densenet121", "resnet18.a1_in1k"])
def test_enot_libraries(name):
    if "." in name:
        model = timm.create_model(name, num_classes=5).eval()
    else:
        model = torchvision.models.get_model(name, num_classes=5).eval()
    images = torch.randn(1, 3, 64, 64)
    dag = torchorbit.convert(model, images)
    pruned = torchorbit.prune(dag, ratio=0.5)
    assert pruned(images).shape == (1, 5)
    assert parameters(pruned) < 0.4 * parameters(model)
