"""`report`: writes a run's page again, with predictions that were made since."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lampseg.errors import UserError
from lampseg.evaluation import Comparison, Evaluation, evaluate, write_report
from lampseg.evaluation.report.case_files import CaseFiles, find_cases
from lampseg.evaluation.report.run_folder import read_run
from lampseg.evaluation.report.scores import ReportScores, scores_of


@dataclass(frozen=True)
class ReportOptions:
    """What the page shows beside the run itself."""

    predictions: Path | None = None
    labels: Path | None = None
    images: Path | None = None
    evaluation: Path | None = None
    comparison: Path | None = None
    worst: int = 4
    viewer: tuple[str, ...] = ("1",)
    """Names of cases, or one number: so many of the worst."""
    viewer_bytes: int = 8_000_000
    """Of the page, for each case of the viewer."""
    out: Path | None = None


def report(run: Path, options: ReportOptions) -> Path:
    """Writes the page; everything is read and checked before the old page is replaced.

    Returns:
        The path of the page.

    Raises:
        UserError: options that do not go together, no such case, files that cannot be read or do not match.
    """
    _check(options)
    folder = read_run(run)
    evaluation = _evaluation(options)
    cases: tuple[CaseFiles, ...] = ()
    if options.predictions is not None:
        cases = find_cases(options.predictions, options.labels, images=options.images)
    scores = scores_of(evaluation) if evaluation is not None else folder.scores
    return write_report(
        run,
        comparison=None if options.comparison is None else _read_comparison(options.comparison),
        evaluation=evaluation,
        cases=cases,
        worst=options.worst,
        viewer=chosen_cases(options.viewer, cases, scores=scores),
        budget=options.viewer_bytes,
        out=options.out,
    )


def chosen_cases(wanted: Sequence[str], cases: Sequence[CaseFiles], *, scores: ReportScores | None) -> tuple[str, ...]:
    """The names of the cases for the viewer; a number that is no case's name counts from the worst one.

    Raises:
        UserError: there is no such case.
    """
    names = [case.name for case in cases]
    if len(wanted) == 1 and wanted[0] not in names and wanted[0].isdecimal():
        worst = [] if scores is None else scores.worst(len(scores.organs) * len(scores.values["dice"]))
        order = dict.fromkeys([*(case for case, _, _ in worst if case in names), *names])
        return tuple(order)[: int(wanted[0])]
    for name in wanted:
        if name not in names:
            raise UserError(
                f"--viewer: there is no case `{name}` with a prediction and an image; "
                + (f"there are {', '.join(names)}" if names else "give --predictions")
            )
    return tuple(wanted)


def _check(options: ReportOptions) -> None:
    if options.predictions is None and (options.labels is not None or options.images is not None):
        raise UserError("--labels and --images belong to predictions: give their folder by --predictions")
    if options.worst < 0:
        raise UserError(f"--worst: {options.worst} is below 0; give how many results to show")
    if options.viewer_bytes < 10_000:
        raise UserError(f"--viewer-size: {options.viewer_bytes / 1e6:g} MB is too little for a volume; give 1 or more")
    if options.out is not None and options.out.is_dir():
        raise UserError(f"{options.out}: is a folder; give --out the name of a file, such as report.html")


def _evaluation(options: ReportOptions) -> Evaluation | None:
    if options.evaluation is not None:
        return Evaluation.from_json(_text(options.evaluation), source=str(options.evaluation))
    if options.predictions is None or options.labels is None:
        return None
    with tempfile.TemporaryDirectory(prefix="lampseg_") as folder:
        return evaluate(options.predictions, options.labels, out=Path(folder))


def _read_comparison(path: Path) -> Comparison:
    return Comparison.from_json(_text(path), source=str(path))


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error}); check the path") from error
