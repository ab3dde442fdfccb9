"""What all tests of the doctor share: what a check sets in this process is put back."""

import pytest

from v2f.storage import objects, retry


@pytest.fixture(autouse=True)
def as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """Checks usually run in a process of their own and change settings there; tests call them in this one."""
    monkeypatch.setattr(retry, "ATTEMPTS", retry.ATTEMPTS)
    monkeypatch.setattr(objects, "PART", objects.PART)
    monkeypatch.setattr(retry, "BACKOFF_S", 0.01)
