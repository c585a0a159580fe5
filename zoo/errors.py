"""What goes wrong between a checkpoint and a hub."""

from __future__ import annotations

from torchorbit.errors import TorchorbitError


class HubError(TorchorbitError):
    """A hub does not have what was asked for, does not let us do it, or cannot be reached."""
