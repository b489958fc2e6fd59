"""One thread for each process: ranks, and stages that run as threads, share few cores. The dearest files go first."""

import os

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

DEAREST = (
    "end_to_end/test_resume.py",
    "end_to_end/test_training.py",
    "end_to_end/test_importable_network.py",
    "end_to_end/test_spatial.py",
    "equivalence/test_pipeline.py",
    "equivalence/test_mesh.py",
    "equivalence/test_spatial.py",
    "end_to_end/test_planning.py",
    "end_to_end/test_benchmark.py",
    "end_to_end/test_demo.py",
    "equivalence/test_any_network.py",
    "end_to_end/test_real_scan.py",
    "end_to_end/test_reproduce.py",
    "end_to_end/test_formats.py",
    "end_to_end/test_report_in_browser.py",
)
"""In the order in which pytest-xdist hands them out: of a long file that came last, one core would wait for the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    folder = os.path.dirname(__file__)

    def place(item: pytest.Item) -> int:
        name = os.path.relpath(item.path, folder)
        return DEAREST.index(name) if name in DEAREST else len(DEAREST)

    items.sort(key=place)  # which keeps the order within a file
