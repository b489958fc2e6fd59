"""A pytest plugin: the processor seconds of every file and the dearest tests, all their processes counted.

`pytest -p tests.processor_time ...`; with `--processor-times FILE`, each phase of each test goes to FILE as well.
"""

import contextlib
import json
import os
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

SHOWN = 25
_TICK = os.sysconf("SC_CLK_TCK")
_seconds: dict[str, dict[str, float]] = defaultdict(dict)
"""By test, of each phase."""
_last = 0.0


def spent() -> float:
    """Processor seconds of this process, of those that it started, and of those that they started."""
    total, todo = 0, [os.getpid()]
    while todo:
        process = Path(f"/proc/{todo.pop()}")
        with contextlib.suppress(OSError):  # it has ended meanwhile: its parent has its time
            fields = (process / "stat").read_text().rsplit(")", 1)[1].split()
            total += sum(map(int, fields[11:15]))  # user and system; the same of children that were waited for
            for task in (process / "task").iterdir():
                todo += map(int, (task / "children").read_text().split())
    return total / _TICK


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--processor-times", metavar="FILE", help="write the processor seconds of every test to FILE")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol() -> Iterator[None]:
    global _last
    _last = spent()
    return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Iterator[None]:
    global _last
    report: Any = yield
    now = spent()
    report.processor_seconds, _last = now - _last, now  # xdist sends what a report holds
    return report


def pytest_runtest_logreport(report: Any) -> None:
    if hasattr(report, "processor_seconds"):
        _seconds[report.nodeid][report.when] = report.processor_seconds


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    if not _seconds:  # a worker of xdist
        return
    files: dict[str, float] = defaultdict(float)
    for test, phases in _seconds.items():
        files[test.split("::")[0]] += sum(phases.values())
    every = [(seconds, f"{when} {test}") for test, phases in _seconds.items() for when, seconds in phases.items()]
    terminalreporter.section("processor seconds")
    for name, seconds in sorted(files.items(), key=lambda item: -item[1]):
        terminalreporter.line(f"{seconds:8.1f}  {name}")
    terminalreporter.line(f"{sum(files.values()):8.1f}  together")
    terminalreporter.section("dearest")
    for seconds, name in sorted(every, reverse=True)[:SHOWN]:
        terminalreporter.line(f"{seconds:8.1f}  {name}")
    if path := config.getoption("--processor-times"):
        Path(path).write_text(json.dumps(_seconds, indent=1))
