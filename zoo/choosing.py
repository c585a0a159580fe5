"""Which hub is meant."""

from __future__ import annotations

import os
from pathlib import Path

from zoo.directory import DirectoryHub
from zoo.hubs import Hub


def choose(hub: str | Path | None, token: str | None = None) -> Hub:
    """The hub that is meant.

    Args:
        hub: None or ``"hf"`` for the Hugging Face Hub, the address of another server that speaks its language, or a
            folder.
        token: for the server.
    """
    if hub is None or hub == "hf" or str(hub).startswith(("http://", "https://")):
        # The client takes long to import, and a folder has no need of it.
        from zoo.hugging_face import HuggingFaceHub

        return HuggingFaceHub(None if hub in (None, "hf") else str(hub), token)
    return DirectoryHub(Path(os.path.expanduser(hub)))  # noqa: PTH111 - of whatever kind it is
