"""Which hub is meant."""

from __future__ import annotations

import os
from pathlib import Path

from torchorbit.errors import HubError
from zoo.directory import DirectoryHub
from zoo.hubs import Hub
from zoo.texts import one_line


def choose(hub: str | Path | None, token: str | None = None) -> Hub:
    """The hub that is meant.

    Args:
        hub: None or ``"hf"`` for the Hugging Face Hub, the address of another server that speaks its language, or a
            folder.
        token: for the server.

    Raises:
        HubError: it is an address, and not one of a server that can be asked.
    """
    scheme, address, _ = str(hub).partition("://")
    if hub is None or hub == "hf" or (address and scheme.lower() in ("http", "https")):
        # The client takes long to import, and a folder has no need of it.
        from zoo.hugging_face import HuggingFaceHub

        return HuggingFaceHub(None if hub in (None, "hf") else str(hub), token)
    if address and not isinstance(hub, Path):
        raise HubError(f"a hub is not asked by {one_line(scheme)}://; expected https://, or a folder")
    return DirectoryHub(Path(os.path.expanduser(hub)))  # noqa: PTH111 - of whatever kind it is
