from __future__ import annotations

import torch
from PIL import Image

from benchmarks.emoji import LEAST, MAKERS, TESTED, Emoji, classes_of, code_points, small


def entries(subgroup: str, count: int, first: int, category: str = "Animals & Nature", sign: str = "") -> list:
    return [
        {"unified": f"{code:X}{sign}", "subcategory": subgroup, "category": category}
        for code in range(first, first + count)
    ]


def test_subgroups_with_the_same_first_word_are_one_class_and_small_ones_are_none():
    few = entries("plant-other", LEAST - 1, 0x1F500)
    found = classes_of(entries("animal-bird", LEAST - 1, 0x1F400) + entries("animal-bug", 1, 0x1F450) + few)
    assert found == {
        f"{code:x}": "Animals & Nature: animal" for code in (*range(0x1F400, 0x1F400 + LEAST - 1), 0x1F450)
    }


def test_variants_of_an_emoji_and_flags_are_left_out():
    plain = entries("person-role", LEAST, 0x1F400, sign="-FE0F")
    women = entries("person-role", LEAST, 0x1F400, sign="-FE0F-200D-2640-FE0F")
    found = classes_of(plain + women + entries("country-flag", LEAST, 0x1F600, "Flags"))
    assert set(found) == {f"{code:x}" for code in range(0x1F400, 0x1F400 + LEAST)}


def test_makers_name_their_files_in_different_ways():
    assert code_points("0023-FE0F-20E3") == code_points("23-20e3")


def test_all_that_one_maker_drew_is_for_the_test_and_nothing_else():
    makers = torch.arange(len(MAKERS)).repeat(3)
    data = Emoji(torch.zeros(len(makers), 3, 32, 32, dtype=torch.uint8), torch.zeros_like(makers), makers, ["face"])
    assert {MAKERS[maker] for maker in makers[data.tested]} == {TESTED}
    assert TESTED not in {MAKERS[maker] for maker in makers[~data.tested]}


def test_pictures_are_cut_to_what_is_drawn_and_put_on_grey():
    picture = Image.new("RGBA", (64, 64))
    picture.paste((255, 0, 0, 255), (8, 24, 56, 40))
    found = small(picture)
    assert found.shape == (3, 32, 32)
    assert found[:, 16, 0].tolist() == [255, 0, 0]
    assert found[:, 0, 16].tolist() == [128, 128, 128]
