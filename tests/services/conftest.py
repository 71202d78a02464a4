"""`make test-systemd` runs what is here; any other run of the tests passes it by."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.services.machine import missing


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A machine takes root, minutes and a mirror of Debian's."""
    here = Path(__file__).parent
    reason = missing() if os.environ.get("FEDTIDE_TEST_SYSTEMD") else "make test-systemd runs it"
    if reason:
        for item in items:
            if here in item.path.parents:
                item.add_marker(pytest.mark.skip(reason=reason))
