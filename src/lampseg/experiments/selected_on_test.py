"""The original code's way to choose: for every organ the best weights on the test set. Labelled as such, never default.

It flatters: the reported average may belong to no single model, and the test set has chosen it. The paper's tables look
as if they were made so, for a row's figure never falls from one input size to the next.
"""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from safetensors import safe_open

from lampseg.commands.predict import PredictOptions, predict
from lampseg.data import Case, Dataset
from lampseg.evaluation import evaluate
from lampseg.evaluation.scores import Evaluation
from lampseg.evaluation.tables import write_text
from lampseg.experiments.definition import Experiment


def selected_on_test(
    experiment: Experiment,
    cases: Sequence[Case],
    dataset: Dataset,
    *,
    run: Path,
    folder: Path,
    devices: int | str | None,
) -> None:
    """Scores every validated model on the test images; a row gets, for each organ, the best up to its input size.

    Writes `on-test/<input>/evaluation.json` of each row; what is there is not computed again.
    """
    known: list[tuple[int, Evaluation]] = []
    for weights in sorted((run / "checkpoints" / "validated").glob("step-*.safetensors")):
        with safe_open(weights, framework="pt") as file:
            stage = int(json.loads(file.metadata()["trained"])["stage"]) - 1
        scored = folder / "on-test" / weights.stem
        if not (scored / "evaluation.json").is_file():
            window = experiment.study.inputs[stage].window
            size = None if isinstance(window, str) else (window,) * 3
            options = PredictOptions(f"validated/{weights.stem}", size, experiment.study.overlap)
            predict(run, [case.image for case in cases], out=scored / "predictions", devices=devices, options=options)
            evaluate(scored / "predictions", dataset, out=scored, metrics="dice")
            shutil.rmtree(scored / "predictions")
        source = scored / "evaluation.json"
        known.append((stage, Evaluation.from_json(source.read_text(encoding="utf-8"), source=str(source))))
    for row in experiment.rows:
        best = best_by_organ([found for stage, found in known if stage <= row.stage])
        write_text(folder / "on-test" / row.input.name / "evaluation.json", best.to_json())


def best_by_organ(models: Sequence[Evaluation]) -> Evaluation:
    """An evaluation of no single model: for each organ the cases' Dice by the model of highest mean."""
    organs = models[0].organs
    columns = []
    for index in range(len(organs)):
        best = max(models, key=lambda found: -1.0 if (mean := found.per_organ[index].mean) is None else mean)
        columns.append([case.dice[index] for case in best.cases])
    cases = {case.case: [column[n] for column in columns] for n, case in enumerate(models[0].cases)}
    return Evaluation.from_cases(cases, class_names=("background", *organs))
