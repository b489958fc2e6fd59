"""The command `lampseg`: parses the verbs and their options, and turns errors into messages and exit codes."""

import difflib
import os
import re
import sys
from collections.abc import Sequence
from typing import get_args

import tyro
from rich.console import Console

from lampseg.errors import PartlyDone, UserError
from lampseg.light import uncollected
from lampseg.verbs import Verb
from lampseg.version import __version__

PARTLY_DONE = 3
INTERRUPTED = 130
DESCRIPTION = (
    "Train and run 3D segmentation networks split over devices. `lampseg VERB --help` explains a verb. "
    "Exit codes: 0 done, 1 failed, 2 something to correct (the message says what), 3 done but for some cases (the "
    "message lists them), 130 interrupted."
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs one verb. Exit codes: 0 done, 1 failed, 2 the user can mend it, 3 some cases left out, 130 interrupted."""
    # Threads that wait by spinning take the processor from those that work; read when torch is loaded, which is later.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if arguments[:1] == ["--version"]:
        sys.stdout.write(f"lampseg {__version__}\n")
        return
    _check_verb(arguments)
    options, fields = split_overrides(arguments)
    verb, rest = tyro.cli(
        Verb,
        prog="lampseg",
        description=DESCRIPTION,
        args=options,
        return_unknown_args=True,
        config=(tyro.conf.FlagCreatePairsOff,),
    )
    with uncollected():  # this loads PyTorch
        from lampseg.parallel.launch import WorkerError, interrupted, is_worker, run_worker

    console = Console(stderr=True)
    try:
        overrides = parse_overrides([*fields, *rest])
        if is_worker():
            run_worker(lambda: verb.run(overrides))
        else:
            verb.run(overrides)
    except UserError as error:
        console.print(f"lampseg: {error}", markup=False, highlight=False, soft_wrap=True)
        sys.exit(PARTLY_DONE if isinstance(error, PartlyDone) else 2)
    except WorkerError as error:
        console.print(f"lampseg: {error}", markup=False, highlight=False, soft_wrap=True)
        sys.exit(1)
    except BrokenPipeError:  # who reads our output has gone, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python complains when it closes it
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except RuntimeError as error:
        if not interrupted(error):
            raise
        sys.exit(INTERRUPTED)


def split_overrides(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Takes the fields of the configuration out of the arguments of `plan` and `train`: (options, overrides).

    They may stand anywhere, also before the configuration file, which would else be taken for their value.
    """
    if list(arguments[:1]) not in (["plan"], ["train"]):
        return list(arguments), []
    from lampseg.config import Config

    options: list[str] = []
    fields: list[str] = []
    items = iter(arguments)
    for item in items:
        found = re.fullmatch(r"(--)?([A-Za-z_][\w-]*)((?:\.[\w-]+)*)(=.*)?", item, re.DOTALL)
        field = found is not None and (found[3] or found[2] in Config.model_fields)
        if found is None or not field or not (found[1] or found[4]):
            options.append(item)
            continue
        fields.append(item)
        if not found[4] and (following := next(items, None)) is not None:
            fields.append(following)
    return options, fields


def parse_overrides(rest: Sequence[str]) -> dict[str, str]:
    """`--a.b value`, `--a.b=value` and `a.b=value` -> {"a.b": "value"}.

    Raises:
        UserError: something else.
    """
    overrides: dict[str, str] = {}
    items = iter(rest)
    for item in items:
        name, equals, value = item.partition("=")
        if not equals:
            if not item.startswith("--"):
                raise UserError(f"`{item}` is not understood here; `lampseg VERB --help` lists the options")
            following = next(items, None)
            if following is None or following.startswith("--"):
                raise UserError(
                    f"`{item}` is no option of this verb, and as a field of the configuration it needs a value; "
                    "`lampseg VERB --help` lists the options"
                )
            value = following
        overrides[name.removeprefix("--").replace("-", "_")] = value
    return overrides


def _check_verb(arguments: Sequence[str]) -> None:
    """Names a misspelt verb; tyro would only say that one is missing."""
    verbs = [re.sub(r"(?<!^)(?=[A-Z])", "-", verb.__name__).lower() for verb in get_args(Verb)]
    if arguments and not arguments[0].startswith("-") and arguments[0] not in verbs:
        near = difflib.get_close_matches(arguments[0], verbs, n=1)
        hint = f"did you mean `{near[0]}`?" if near else f"the verbs are {', '.join(verbs)}"
        Console(stderr=True).print(f"lampseg: unknown verb `{arguments[0]}`: {hint}", markup=False, highlight=False)
        sys.exit(2)
