"""What torchorbit's extras bring, and what to say where one of them is missing."""

from __future__ import annotations

import importlib.util

from torchorbit.errors import MissingExtraError

#: Extra -> the packages that it brings and that are imported by name.
EXTRAS: dict[str, tuple[str, ...]] = {
    "harness": (
        "timm",
        "torchvision",
        "pandas",
        "pyarrow",
        "joblib",
        "matplotlib",
        "platformdirs",
        "psutil",
        "safetensors",
    ),
    "optimal": ("botorch",),
    "onnx": ("onnx", "onnxruntime", "onnxscript"),
    "distributed": ("distributed", "ray"),
}


def require(extra: str, what: str, *packages: str) -> None:
    """Refuse to go on where packages of an extra are not installed. Nothing is imported for that.

    Args:
        extra: One of `EXTRAS`.
        what: What needs them, for the message: ``"torchorbit sweep"``.
        packages: Those of the extra that are needed; by default all of them.

    Raises:
        MissingExtraError: One is not installed; the message says which, and how to get it.
    """
    for package in packages or EXTRAS[extra]:
        if not is_installed(package):
            raise MissingExtraError(what, extra, package)


def is_installed(package: str) -> bool:
    """Whether a package can be found, without importing it."""
    try:
        return importlib.util.find_spec(package) is not None
    except (ImportError, ValueError):  # somebody forbids it, or a module that says nothing of itself has its name
        return False
