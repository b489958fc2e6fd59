"""`lampseg compare`: is one run better than another on the same cases? Says so in a sentence, a table and files."""

from pathlib import Path

from rich.console import Console

from lampseg.errors import UserError
from lampseg.evaluation.metrics.measures import choose_metrics
from lampseg.evaluation.scores import Evaluation
from lampseg.evaluation.statistics.pairing import PairedComparison, compare_evaluations
from lampseg.evaluation.statistics.sentence import paired_sentence
from lampseg.evaluation.statistics.tables import comparisons_csv, comparisons_json, paired_table
from lampseg.evaluation.tables import write_text


def compare(
    a: Path,
    b: Path,
    *,
    metric: str = "dice",
    names: tuple[str, str] | None = None,
    out: Path | None = None,
) -> tuple[PairedComparison, ...]:
    """Compares two files of `lampseg evaluate` (or the folders that hold them) and prints what comes out.

    Args:
        metric: names of metrics, separated by commas, or `all`.
        names: what to call the runs; without it, as the folders of the files.
        out: folder that gets `compare.json` and `compare.csv`.

    Raises:
        UserError: files that are no evaluations, or as `compare_evaluations`; `out` cannot be written.
    """
    files = [path / "evaluation.json" if path.is_dir() else path for path in (a, b)]
    first, second = map(_read, files)
    called = names or _names(*files)
    if called[0] == called[1]:
        raise UserError(f"--names: both runs are called `{called[0]}`; give two names that differ")
    chosen = choose_metrics(metric, option="--metric")
    found = tuple(compare_evaluations(first, second, metric=name, names=called) for name in chosen)
    if out is not None:
        write_text(out / "compare.json", comparisons_json(found))
        write_text(out / "compare.csv", comparisons_csv(found))
    console = Console()
    for comparison in found:
        console.print(paired_table(comparison))
        console.print(paired_sentence(comparison), markup=False, highlight=False)
    return found


def _read(path: Path) -> Evaluation:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path}: cannot be read ({reason}); give an evaluation.json of `lampseg evaluate`") from error
    return Evaluation.from_json(text, source=str(path))


def _names(a: Path, b: Path) -> tuple[str, str]:
    """The shortest ends of the two paths that tell them apart: usually the folders of two evaluation.json."""
    first, second = (path.resolve().with_suffix("").parts for path in (a, b))
    if a.name == b.name == "evaluation.json":
        first, second = first[:-1], second[:-1]
    for depth in range(1, max(len(first), len(second))):
        one, other = (str(Path(*parts[-depth:])) for parts in (first, second))
        if one != other:
            return one, other
    return str(a), str(b)
