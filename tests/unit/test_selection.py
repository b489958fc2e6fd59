"""Which model of a run is the best, overall and of each curriculum stage."""

import json

from lampseg.training.selection import Selection


def test_the_best_of_the_run_and_of_each_stage() -> None:
    selection = Selection()
    assert selection.offer(step=5, stage=0, score=0.5) == ("best", "stage-1-best")
    assert selection.offer(step=10, stage=0, score=0.4) == ()
    assert selection.offer(step=15, stage=1, score=0.3) == ("stage-2-best",), (
        "the first of its stage, worse than before"
    )
    assert selection.offer(step=20, stage=1, score=0.3) == (), "as good is not better"
    assert selection.offer(step=25, stage=1, score=0.6) == ("best", "stage-2-best")
    assert (selection.step, selection.score) == (25, 0.6)
    assert selection.stages == {0: (5, 0.5), 1: (25, 0.6)}


def test_without_a_score_the_last_is_the_best() -> None:
    selection = Selection()
    for step in (3, 6):
        assert selection.offer(step=step, stage=0, score=None) == ("best", "stage-1-best")
    assert selection.step == 6


def test_it_survives_a_checkpoint() -> None:
    selection = Selection()
    selection.offer(step=5, stage=0, score=0.5)
    selection.offer(step=9, stage=2, score=0.25)
    assert Selection.from_json(json.loads(json.dumps(selection.to_json()))) == selection
    before = Selection.from_json({"step": 7, "validation": 0.5})
    assert before == Selection(7, 0.5), "checkpoints of earlier versions know no stages"
