"""What calibration raises."""

from __future__ import annotations

from torchorbit.errors import TorchorbitError


class CalibrationError(TorchorbitError):
    """Data, a loss or a loader from which no scores can be made."""
