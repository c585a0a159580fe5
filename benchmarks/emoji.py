"""Emoji in colour, as five makers draw them: which group of Unicode's is it, drawn in a way that was never seen?

The classes are Unicode's subgroups, those of a category with the same first word taken together (`animal-bird` and
`animal-bug` are `animal`) and those of fewer than `LEAST` emoji left out. So are `LEFT_OUT`: activities and objects,
which go by what they are for and not by how they look, flags, which all makers copy, and components. And so is whatever
is joined from several emoji: genders and families; skin tones are not taken to begin with. A maker so draws every emoji
once. All that one maker drew is for the test, and nothing else is.

Makers' pictures come from npm's registry, in versions that are held to by hashes. Each is cut to what is drawn, put in
the middle of a grey square and made small; `runs/criteria` keeps what comes of it. Run as a program, this says what it
is made of.
"""

from __future__ import annotations

import base64
import io
import json
import shutil
import sys
import tarfile
import tempfile
import urllib.request
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from tabulate import tabulate
from torch import Tensor

from torchorbit.files import digest, replacing

KEPT = Path("runs/criteria/emoji.safetensors")
SIZE = 32
GREY = 128
LEAST = 12
LEFT_OUT = ("Activities", "Objects", "Flags", "Component")
REGISTRY = "https://registry.npmjs.org"
#: A package that names emoji, too.
NAMES = "package/emoji.json"
_SECONDS = 60.0
_JOINER, _PRESENTATION = "200d", "fe0f"


@dataclass(frozen=True)
class Maker:
    """Who draws emoji, and where the drawings are.

    Attributes:
        name: of the maker.
        licence: of the drawings.
        package: of npm.
        version: of the package.
        integrity: the SHA-512 of its archive, as npm writes it.
        folder: of the pictures in the archive.
        suffix: of their names.
    """

    name: str
    licence: str
    package: str
    version: str
    integrity: str
    folder: str
    suffix: str = ".png"

    @property
    def address(self) -> str:
        """Where the archive is."""
        return f"{REGISTRY}/{self.package}/-/{self.package.rpartition('/')[2]}-{self.version}.tgz"


MAKERS = (
    Maker(
        "Google (Noto Emoji 2.048)",
        "Apache-2.0",
        "emoji-datasource-google",
        "16.0.0",
        "ZRexfzs7MVoLnmzZmNsO4TKhnAJp5D++Vm6PpUpH/jEQQlemp3l88CjZ+DoZ2faM9R4QxZkOPJCoT8DlPhfQ3A==",
        "package/img/google/64/",
    ),
    Maker(
        "Microsoft (Fluent Emoji, 3D)",
        "MIT",
        "@lobehub/fluent-emoji-3d",
        "1.1.0",
        "Wlq2lVStTnr8BDpIJ0pEnTKO4LuDxxqTEhTvRtD1DLRF0me7ogeRQjKoehDHXuVJ2Qaecgl5wRBv60lUAG3h7g==",
        "package/assets/",
        ".webp",
    ),
    Maker(
        "EmojiOne 1",
        "CC-BY-SA-4.0",
        "emojione",
        "1.5.2",
        "OFCLNxhbPEkhFlSRV9EAEMHkFl5XYNdqhBa4EULoOxdubVrdgaWfcTEL+nYeRuF+UzX3pfh8uwC8RqgnJ6TObA==",
        "package/assets/png/",
    ),
    Maker(
        "EmojiOne 2, drawn anew",
        "CC-BY-4.0",
        "emojione",
        "2.2.7",
        "Gbf8qysc34+TFUS5HPwOUY62v8gjLuPmfVTWUR/zirULSYUe/D3MrvYo0W5Y2gScF1YI7EBe5t81IbD8q144Ag==",
        "package/assets/png_128x128/",
    ),
    Maker(
        "Twitter (Twemoji 16.0.1)",
        "CC-BY-4.0",
        "emoji-datasource-twitter",
        "16.0.0",
        "7F+uCuHH+7Qnrc15P5tnbvKkg9E6tlzi4MnT2uW1RlN4pLYTza6cP/dstIfSDMtpjFLWuZewWg8jBbuL2eyELQ==",
        "package/img/twitter/64/",
    ),
)
NAMING, TESTED = MAKERS[0], MAKERS[-1]


@dataclass(frozen=True)
class Emoji:
    """The data set.

    Attributes:
        images: of shape (n, 3, `SIZE`, `SIZE`), bytes.
        labels: the index of each image's class.
        makers: the index of who drew it.
        classes: what they are called.
    """

    images: Tensor
    labels: Tensor
    makers: Tensor
    classes: Sequence[str]

    @property
    def tested(self) -> Tensor:
        """Which of the images are for the test."""
        return self.makers == MAKERS.index(TESTED)


def emoji() -> Emoji:
    """The data set, which is built where it is not kept yet."""
    if not KEPT.exists():
        _build()
    with safe_open(KEPT, "pt") as kept:
        tensors = {name: kept.get_tensor(name) for name in ("images", "labels", "makers")}
        return Emoji(**tensors, classes=json.loads(kept.metadata()["classes"]))


def classes_of(entries: Sequence[dict[str, Any]]) -> dict[str, str]:
    """The class of each emoji that has one.

    Args:
        entries: of `NAMES`.

    Returns:
        By the emoji's code points, as `code_points` writes them.
    """
    found = {
        code_points(entry["unified"]): f"{entry['category']}: {entry['subcategory'].partition('-')[0]}"
        for entry in entries
        if entry["category"] not in LEFT_OUT and _JOINER not in entry["unified"].lower().split("-")
    }
    counts = Counter(found.values())
    return {emoji: name for emoji, name in found.items() if counts[name] >= LEAST and not name.endswith(": other")}


def code_points(name: str) -> str:
    """An emoji in the one way of the many in which makers name their files."""
    return "-".join(part.lstrip("0") for part in name.lower().split("-") if part != _PRESENTATION)


def small(picture: Image.Image) -> Tensor:
    """A picture as it is in the data set."""
    picture = picture.convert("RGBA")
    picture = picture.crop(picture.getchannel("A").getbbox())
    side = max(picture.size)
    square = Image.new("RGBA", (side, side), (GREY, GREY, GREY, 255))
    square.alpha_composite(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
    pixels = np.array(square.convert("RGB").resize((SIZE, SIZE), Image.Resampling.LANCZOS))
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def _build() -> None:
    images, labels, makers = [], [], []
    with tempfile.TemporaryDirectory() as scratch:
        archives = [_fetched(maker, Path(scratch) / f"{index}.tgz") for index, maker in enumerate(MAKERS)]
        with tarfile.open(archives[MAKERS.index(NAMING)]) as archive:
            names = archive.extractfile(NAMES)
            assert names is not None
            known = classes_of(json.load(names))
        classes = sorted(set(known.values()))
        for index, (maker, path) in enumerate(zip(MAKERS, archives, strict=True)):
            drawn = dict(_pictures(maker, path, known.keys()))
            for emoji in sorted(drawn):  # not as the archive happens to have them
                images.append(drawn[emoji])
                labels.append(classes.index(known[emoji]))
                makers.append(index)
    tensors = {"images": torch.stack(images), "labels": torch.tensor(labels), "makers": torch.tensor(makers)}
    with replacing(KEPT) as aside:
        save_file(tensors, aside, {"classes": json.dumps(classes)})


def _fetched(maker: Maker, path: Path) -> Path:
    print(f"fetching {maker.address}", file=sys.stderr, flush=True)
    with urllib.request.urlopen(maker.address, timeout=_SECONDS) as answer, path.open("wb") as file:
        shutil.copyfileobj(answer, file)
    found = base64.b64encode(bytes.fromhex(digest(path, "sha512"))).decode()
    if found != maker.integrity:
        raise ValueError(f"{maker.address} has the SHA-512 {found}, not {maker.integrity}: it is another archive")
    return path


def _pictures(maker: Maker, path: Path, wanted: Any) -> Iterator[tuple[str, Tensor]]:
    with tarfile.open(path) as archive:
        for member in archive:
            if not (member.name.startswith(maker.folder) and member.name.endswith(maker.suffix)):
                continue
            emoji = code_points(member.name[len(maker.folder) : -len(maker.suffix)])
            if emoji in wanted:
                file = archive.extractfile(member)
                assert file is not None
                yield emoji, small(Image.open(io.BytesIO(file.read())))


def main() -> None:
    """Say what the data set is made of."""
    data = emoji()
    rows = [
        [
            maker.name,
            maker.licence,
            f"{maker.package} {maker.version}",
            "test" if maker is TESTED else "training",
            int((data.makers == index).sum()),
        ]
        for index, maker in enumerate(MAKERS)
    ]
    print(tabulate(rows, ["maker", "licence", "package of npm", "for", "images"], tablefmt="github"), end="\n\n")
    counts = [data.labels[chosen].bincount(minlength=len(data.classes)) for chosen in (~data.tested, data.tested)]
    rows = [[name, *(int(count[label]) for count in counts)] for label, name in enumerate(data.classes)]
    rows.append([f"{len(rows)} classes", *(int(count.sum()) for count in counts)])
    print(tabulate(rows, ["class", "training", "test"], tablefmt="github"))


if __name__ == "__main__":
    main()
