"""A hub on loopback for the tests, and a client that knows no other."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import tenacity.nap
from huggingface_hub import constants, file_download
from huggingface_hub.utils import _http as client_http

from tests.zoo.hub import Hub, running_hub


@pytest.fixture(scope="session")
def _hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    with running_hub(tmp_path_factory.mktemp("hub")) as hub:
        yield hub


@pytest.fixture
def hub(_hub: Hub, client: None) -> Hub:
    """A hub with nothing on it, and nothing wrong with it."""
    _hub.empty()
    return _hub


@pytest.fixture
def client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The real client, with a cache and tokens of this test alone."""
    for variable in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no token"))
    # It would ask the real hub which programs to tell it about.
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
    # Where hf_xet is installed, it uploads through that alone, whether the hub has such a storage or not.
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
    # Connections that it keeps open may be to a server that is no more.
    huggingface_hub.close_session()
    yield
    huggingface_hub.close_session()


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that the client and the zoo wait before they try again, which take no time here."""
    waited: list[float] = []

    class Clock:
        sleep = staticmethod(waited.append)

        def __getattr__(self, name: str) -> Any:
            return getattr(time, name)

    clock = Clock()
    monkeypatch.setattr(client_http, "time", clock)
    monkeypatch.setattr(file_download, "time", clock)
    monkeypatch.setattr(tenacity.nap, "time", clock)
    return waited
