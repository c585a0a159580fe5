"""Scores in files: what is written is read again, and nothing else is."""

import stat

import numpy as np
import pytest
import torch
from torch import nn

import torchorbit
from torchorbit import Scores
from torchorbit.criteria import Magnitude
from torchorbit.errors import ScoresError


def graph(width=6):
    return torchorbit.convert(nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, 3)), torch.randn(2, 4))


def test_a_file_holds_the_scores_and_is_like_any_other_that_is_written(tmp_path):
    dag = graph()
    scores = Magnitude().scores(torchorbit.find_orbits(dag))
    path = tmp_path / "scores"
    path.write_text("an earlier one")
    (tmp_path / "other").write_text("")
    scores.save(path)
    orbits = torchorbit.find_orbits(dag)
    again = Scores.load(path, orbits)
    assert (again.criterion, again.samples, again.orbits) == ("magnitude", 0, orbits)
    assert np.array_equal(again[orbits[0]], scores[scores.orbits[0]])
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE((tmp_path / "other").stat().st_mode)
    assert {file.name for file in tmp_path.iterdir()} == {"scores", "other"}


def test_scores_of_another_model_are_refused_and_called_that(tmp_path):
    Magnitude().scores(torchorbit.find_orbits(graph())).save(tmp_path / "scores")
    with pytest.raises(ScoresError) as caught:
        Scores.load(tmp_path / "scores", torchorbit.find_orbits(graph(8)))
    assert str(caught.value).startswith(f"'{tmp_path / 'scores'}' holds scores for the orbits of another model")


@pytest.mark.parametrize("content", ["text", "nothing", "an array", "half of it", "other arrays"])
def test_what_holds_no_scores_is_refused(tmp_path, content):
    orbits = torchorbit.find_orbits(graph())
    path = tmp_path / "scores.npz"
    Magnitude().scores(orbits).save(path)
    if content == "text":
        path.write_text("scores")
    elif content == "nothing":
        path.write_bytes(b"")
    elif content == "an array":
        with path.open("wb") as file:
            np.save(file, np.ones(3))
    elif content == "half of it":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    else:
        np.savez(path, a=np.ones(3))
    with pytest.raises(ScoresError, match=r"scores.npz' holds no scores that `Scores.save` wrote: (?!.*pickle)"):
        Scores.load(path, orbits)
