"""Images: for criteria that look at data, for new weights, and to measure accuracy on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset

from harness.errors import UsageError
from torchorbit.extras import require
from zoo.manifest import Preprocessing

_SPLITS = ("train", "training", "val", "valid", "validation", "eval", "evaluation", "test")
_PREFIXES = ("torch/", "hfds/", "hfids/", "tfds/", "wds/")


@dataclass(frozen=True)
class Images:
    """A data set of images, as `timm.data.create_dataset` finds it.

    Attributes:
        name: a folder with a subfolder of images for every class, in the order of the names, or with images that have
            no labels; a tar file like it; or the name of a data set with timm's prefix for where it comes from
            (``torch/cifar10``, ``hfds/...``).
        split: which part of it; of a folder the subfolder of that name, where there is one.
        root: where it is kept, for those that have a name.
        samples: take so many images, drawn at random; all of them by default.
        batch_size: images at a time.
        workers: processes that read them.
    """

    name: str
    split: str = "validation"
    root: Path | None = None
    samples: int | None = None
    batch_size: int = 32
    workers: int = 0

    def __str__(self) -> str:
        where = Path(self.name).name if self._is_path() else self.name
        count = f"{self.samples} images of " if self.samples is not None else ""
        return f"{count}{where} ({self.split})"

    def loader(self, preprocessing: Preprocessing, *, seed: int = 0) -> DataLoader[Any]:
        """Batches of inputs of a model and labels.

        Args:
            preprocessing: of the model.
            seed: of the images that are drawn.

        Returns:
            A loader of tensors of shape (batch, channels, height, width) and labels of shape (batch,), -1 where there
            are none; the same in every pass.

        Raises:
            UsageError: there is no such data set, or no image in it.
            MissingExtraError: timm or torchvision is not installed.
        """
        require("harness", "--data", "timm", "torchvision")
        data = self._open(preprocessing)
        generator = torch.Generator().manual_seed(seed)
        if self.samples is not None and not isinstance(data, IterableDataset):
            drawn = torch.randperm(len(data), generator=generator)[: self.samples]  # type: ignore[arg-type]
            data = Subset(data, drawn.tolist())
        return DataLoader(data, self.batch_size, num_workers=self.workers)

    def _open(self, preprocessing: Preprocessing) -> Dataset[Any]:
        from harness.timm_import import create_dataset
        from zoo.preprocessing import transforms_of

        path = Path(self.name)
        if not path.exists() and not self.name.lower().startswith(_PREFIXES):
            raise UsageError(
                f"--data {self.name}: there is no such folder or file, and it is no name of a data set, which begins "
                f"with {', '.join(_PREFIXES[:-1])} or {_PREFIXES[-1]}"
            )
        self._check_split(path)
        where = str(path) if path.exists() else None if self.root is None else str(self.root)
        try:
            data = create_dataset(
                "" if path.exists() else self.name,
                root=where,
                split=self.split,
                batch_size=self.batch_size,
                num_samples=self.samples,
                input_img_mode="L" if preprocessing.input_size[0] == 1 else "RGB",
            )
        except (RuntimeError, ValueError, OSError, AssertionError, ImportError, KeyError) as error:
            raise UsageError(f"--data {self.name} ({self.split}) cannot be read: {error}") from error
        data.transform = transforms_of(preprocessing)
        if getattr(getattr(data, "reader", None), "class_to_idx", None) == {"": 0}:  # no folders for classes
            data.target_transform = _no_label
        return data

    def _check_split(self, folder: Path) -> None:
        """A folder without a subfolder of this name is taken as a whole: not where that would mix others up."""
        there = [name for name in _SPLITS if (folder / name).is_dir()]
        same = next((names for names in (_SPLITS[:2], _SPLITS[2:7]) if self.split in names), (self.split,))
        if there and not any((folder / name).is_dir() for name in same):
            raise UsageError(
                f"--data {self.name} has no '{self.split}'; say with --split which of {', '.join(there)} is meant"
            )

    def _is_path(self) -> bool:
        return not self.name.lower().startswith(_PREFIXES)


def _no_label(label: int) -> int:
    return -1


def dtype_of(model: nn.Module) -> torch.dtype:
    """The dtype of a model's weights, which its images have to be of, too."""
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)


def cross_entropy(output: Any, sample: Any) -> Tensor:
    """The mean cross entropy of a batch of a classifier.

    Args:
        output: logits of shape (batch, classes).
        sample: images and labels.

    Raises:
        UsageError: there is a label that the model has no class for, or the output is none of a classifier.
    """
    labels = checked(output, sample[1])
    return F.cross_entropy(output.float(), labels.to(output.device))


def checked(output: Any, labels: Tensor) -> Tensor:
    """Labels that a classifier can have.

    Raises:
        UsageError: there is one that the model has no class for, or the output is none of a classifier.
    """
    if not isinstance(output, Tensor) or output.dim() != 2:
        shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise UsageError(f"the model's output is {shape}, expected scores of classes, (batch, classes)")
    if labels.numel() and int(labels.min()) < 0:
        raise UsageError(f"the data has class {int(labels.min())}, expected classes from 0 on; it may have no labels")
    if labels.numel() and int(labels.max()) >= output.shape[1]:
        raise UsageError(
            f"the data has class {int(labels.max())}, and the model tells {output.shape[1]} apart, from 0 on; give the "
            "data that it was trained for"
        )
    return labels
