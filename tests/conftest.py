"""How the tests are shared out: by file, and the end-to-end tests, which use the same runs, all to one process."""

from pathlib import Path

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        folder = Path(item.fspath).parent.name
        item.add_marker(pytest.mark.xdist_group(folder if folder == "end_to_end" else Path(item.fspath).name))
