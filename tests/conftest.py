"""Fixtures for several folders of tests."""

from __future__ import annotations

import pytest

from tests.support import toy_codec


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    """The toy codec in the place of the real one: no model is needed."""
    toy_codec.install(monkeypatch.setattr)
