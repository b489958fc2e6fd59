"""The command line: verbs and options arrive as given, overrides in three spellings, errors as exit codes."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import lampseg.commands.demo
import lampseg.commands.plan
import lampseg.commands.predict
import lampseg.commands.train
import lampseg.data
import lampseg.evaluation
from lampseg.cli import main, parse_overrides
from lampseg.errors import UserError
from lampseg.parallel.launch import WorkerError
from lampseg.version import __version__

Capture = pytest.CaptureFixture[str]
CONFIG = "data: {root: somewhere}\ncurriculum: [{patch: 8, steps: 1}]\n"


@pytest.fixture
def config(tmp_path: Path) -> str:
    path = tmp_path / "config.yaml"
    path.write_text(CONFIG)
    return str(path)


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
    """What `train` and `predict` are called with, instead of calling them."""
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
    for module, name in ((lampseg.commands.train, "train"), (lampseg.commands.predict, "predict")):
        monkeypatch.setattr(module, name, lambda *args, **kwargs: calls.append((args, kwargs)))
    return calls


@pytest.mark.parametrize(
    "arguments",
    [
        ["--network.filters", "64", "--curriculum.0.patch", "[16, 16, 32]"],
        ["--network.filters=64", "--curriculum.0.patch=[16, 16, 32]"],
        ["network.filters=64", "curriculum.0.patch=[16, 16, 32]"],
    ],
)
@pytest.mark.parametrize("place", [0, 1, 3, 4, 6])
def test_three_spellings_of_overrides(arguments: list[str], place: int, config: str, called: Any) -> None:
    """They may stand anywhere."""
    rest = [config, "--run", "out", "--resume", "--devices", "3x4GiB", "--plan", "plans.json"]
    main(["train", *rest[:place], *arguments, *rest[place:]])
    ((found,), options) = called[0]
    assert (found.network.filters, found.curriculum[0].patch) == (64, (16, 16, 32))
    assert found.parallel.devices == "3x4GiB"
    assert options == {"run": Path("out"), "resume": True, "plan": Path("plans.json")}


def test_dashes_and_underscores_mean_the_same(config: str, called: Any) -> None:
    main(["train", config, "--run", "out", "--curriculum.0.micro-batches", "2", "--data.window", "[-21, 89]"])
    ((found,), options) = called[0]
    assert (found.curriculum[0].micro_batches, found.data.window) == (2, (-21, 89))
    assert options["resume"] is False


def test_fields_without_a_dot_and_a_file_with_one(config: str, called: Any) -> None:
    main(["train", "--seed", "7", "--precision=bfloat16", config, "--run", "runs/a.b"])
    ((found,), options) = called[0]
    assert (found.seed, found.precision, options["run"]) == (7, "bfloat16", Path("runs/a.b"))


def test_an_override_may_hold_equals_signs_and_negative_numbers() -> None:
    assert parse_overrides(["--a.b=c=d", "--seed", "-3"]) == {"a.b": "c=d", "seed": "-3"}


@pytest.mark.parametrize(
    ("rest", "message"),
    [
        (["junk"], "`junk` is not understood here"),
        (["--resum"], "`--resum` is no option of this verb, .* needs a value"),
    ],
)
def test_what_is_no_override(rest: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_overrides(rest)


def test_the_options_of_predict(called: Any) -> None:
    command = ["predict", "--run", "r", "--out", "o", "--devices", "2", "--checkpoint", "last", "--overlap", "0.5"]
    main([*command, "--window", "8", "--", "a.nii", "b.nii"])
    (args, options) = called[0]
    assert args == (Path("r"), (Path("a.nii"), Path("b.nii")))
    assert (options["out"], options["devices"]) == (Path("o"), "2")
    assert (options["options"].checkpoint, options["options"].window, options["options"].overlap) == (
        "last",
        (8,) * 3,
        0.5,
    )


def test_what_predict_tells_its_workers_is_understood_by_them(called: Any) -> None:
    options = lampseg.commands.predict.PredictOptions(
        "stage-1", (8, 16, 24), 0.75, 4, "x,z", True, "labels", "liver,left kidney", True, True
    )
    main(["predict", "--run", "r", "--out", "o", *options.arguments(), "--", "a.nii"])
    assert called[0][1]["options"] == options


def ended(arguments: list[str], capture: Capture) -> tuple[Any, str]:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    out, err = capture.readouterr()
    assert "Traceback" not in out + err
    return caught.value.code, out + err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "Expected one of {plan, train, predict, evaluate, "),
        (["trian"], "lampseg: unknown verb `trian`: did you mean `train`?"),
        (["xyz"], "lampseg: unknown verb `xyz`: the verbs are plan, train"),
        (["train"], "--run"),
        (["plan", "CONFIG", "--shape", "1", "2"], "--shape"),
        (
            ["plan", "CONFIG", "--shape", "0", "2", "2", "--classes", "2"],
            "--shape: [0, 2, 2] is not three sizes above 0",
        ),
        (
            ["plan", "CONFIG", "--shape", "8", "8", "8", "--classes", "1"],
            "--classes: 1 is too few; count the background",
        ),
        (["train", "CONFIG", "--run", "x", "--network.filter", "8"], "unknown field `network.filter`: did you mean"),
        (["train", "CONFIG", "--run", "x", "--devices", ""], "--devices: is empty; give a number such as 2"),
        (["train", "none.yaml", "--run", "x"], "none.yaml: no such configuration file"),
        (["evaluate", "--predictions", "a", "--labels", "b", "--out", "c", "--foo", "1"], "unknown option --foo"),
        (["predict", "--run", "r", "--out", "o", "--window", "a"], "--window"),
        (["demo", "--scale", "huge"], "invalid choice 'huge'"),
    ],
)
def test_what_cannot_be_understood(arguments: list[str], said: str, config: str, capsys: Capture) -> None:
    code, text = ended([config if part == "CONFIG" else part for part in arguments], capsys)
    assert code == 2
    assert " ".join(said.split()) in " ".join(text.split())


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (UserError("file [red]: wrong"), 2, "lampseg: file [red]: wrong\n"),
        (WorkerError("rank 1 was killed"), 1, "lampseg: rank 1 was killed\n"),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_exit_codes(
    error: BaseException, code: int, said: str, config: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(lampseg.commands.train, "train", fail)
    assert ended(["train", config, "--run", "x"], capsys) == (code, said)


def test_ctrl_c_that_torch_turns_into_another_error(
    config: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An interrupt while torch has put a mode aside: leaving the mode fails."""

    def fail(*_: Any, **__: Any) -> None:
        try:
            raise KeyboardInterrupt
        finally:
            raise RuntimeError("trying to pop from empty mode stack")

    monkeypatch.setattr(lampseg.commands.train, "train", fail)
    assert ended(["train", config, "--run", "x"], capsys) == (130, "")


def test_a_fault_of_ours_keeps_its_traceback(config: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(lampseg.commands.train, "train", fail)
    with pytest.raises(ZeroDivisionError):
        main(["train", config, "--run", "x"])


@pytest.mark.parametrize(
    "verb",
    ["plan", "train", "predict", "evaluate", "compare", "reproduce", "calibrate", "benchmark", "demo-data", "demo"],
)
def test_every_verb_has_help_without_loose_ends(verb: str, capsys: Capture) -> None:
    code, text = ended([verb, "--help"], capsys)
    assert code == 0
    assert "{None}" not in text
    if verb in ("plan", "train"):
        assert "--network.filters 64" in text


def test_the_help_names_the_verbs_and_the_exit_codes(capsys: Capture) -> None:
    _, text = ended(["--help"], capsys)
    for part in (
        "plan",
        "train",
        "predict",
        "evaluate",
        "compare",
        "calibrate",
        "benchmark",
        "demo-data",
        "demo",
        "Exit codes: 0 done",
    ):
        assert part in text
    main(["--version"])
    assert capsys.readouterr().out == f"lampseg {__version__}\n"


def plan_command(config: str) -> list[str]:
    small = ["--shape", "16", "16", "16", "--classes", "3", "--network.filters", "4", "--network.depth", "1"]
    return [sys.executable, "-m", "lampseg", "plan", config, "--json", *small]


def test_a_reader_that_goes_away_gets_no_traceback(config: str) -> None:
    """`lampseg plan ... | head`"""
    with subprocess.Popen(plan_command(config), stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 1


def test_plan_without_data_as_json(config: str) -> None:
    """As a process of its own: nothing but JSON may stand on standard output."""
    done = subprocess.run([*plan_command(config), "--devices", "2x2GiB"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith(("[", "{"))
    (plan,) = json.loads(done.stdout)["plans"]
    assert plan["choices"]["devices"] * plan["choices"]["replicas"] == 2
