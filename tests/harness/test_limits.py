from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from harness import limits


def test_a_limit_of_the_container_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "memory.max").write_text("3000000\n")
    (tmp_path / "memory.current").write_text("1000000\n")
    monkeypatch.setattr(limits, "_CGROUP", tmp_path)

    assert limits.available_bytes() == 2_000_000


def test_no_limit_of_the_container_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("1000000\n")
    monkeypatch.setattr(limits, "_CGROUP", tmp_path)

    assert limits.available_bytes() > 2_000_000


def test_the_budget_is_a_whole_number_of_gibibytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "_CGROUP", tmp_path)
    total, available = 100 * 2**30, 50 * 2**30
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"total": total, "available": available}))

    assert limits.memory_budget() == 47 * 2**30
    (tmp_path / "memory.max").write_text(f"{3 * 2**30}\n")
    assert limits.memory_budget() == int(3 * 2**30 * 0.9)
