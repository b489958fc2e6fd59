"""`lampseg calibrate`: measures on as many processes as asked for, and what it stores serves plans."""

import json
from pathlib import Path

import pytest

from lampseg.hardware.device import hardware_for
from lampseg.recording.kernel import Kernel
from tests.end_to_end.command import LAMPSEG, lampseg, running

pytestmark = pytest.mark.timeout(120)


def test_calibration_on_two_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "cache" / "lampseg" / "hardware.json"
    monkeypatch.delenv("LAMPSEG_HARDWARE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    with running([*LAMPSEG, "calibrate", "--devices", "2", "--quick"], folder=tmp_path / "out") as command:
        done = command.finish()
    assert done.code == 0, done.err
    assert "2 process(es), 1 thread(s)" in done.out
    assert "slow path" in done.out
    assert "messages between processes" in done.out
    assert str(path) in done.out
    (entry,) = json.loads(path.read_text())["calibrations"]
    assert entry["hardware"]["processes"] == 2
    hardware = hardware_for(kind="cpu", processes=2)
    assert hardware.source.startswith("measured on")
    assert hardware.transfer_seconds(1e6) > hardware.transfer_seconds(0) >= 0
    assert hardware.seconds(Kernel("relu", "pointwise", 0.0, 10**8)) > 0
    assert hardware_for(kind="cpu", processes=1).source.startswith("stated preset")


@pytest.mark.parametrize(
    ("content", "message"),
    [("{", "is not JSON"), ('{"loss": 1.0}', "is not a calibration")],
)
def test_a_foreign_file_is_not_overwritten(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str, message: str
) -> None:
    path = tmp_path / "other.json"
    path.write_text(content)
    with pytest.raises(SystemExit) as ended:
        lampseg("calibrate", "--quick", "--out", path)
    assert ended.value.code == 2
    err = " ".join(capsys.readouterr().err.split())
    assert message in err
    assert "calibrate again" in err
    assert path.read_text() == content
