"""A run in one paragraph: what was trained, on what, how far, and what came out."""

from lampseg.evaluation.report.comparison import Comparison
from lampseg.evaluation.report.run_folder import RunFolder
from lampseg.evaluation.tables import counted, dice_text, seconds_text


def summary_paragraph(run: RunFolder, *, comparison: Comparison | None = None) -> str:
    """Plain text, no markup. Says what is missing rather than leaving it out."""
    sentences = [_trained(run), _selected(run)]
    if comparison is not None:
        sentences.append(_compared(comparison))
    elif run.evaluation is not None:
        count = len(run.evaluation.cases)
        sentences.append(f"Its average Dice on {counted(count, 'evaluated case')} is {_dice(run.evaluation.average)}.")
    return " ".join(sentences)


def network_text(run: RunFolder) -> str:
    """The network with what tells it from others, e.g. "unet (filters 32, 22.9 million parameters)"."""
    network = run.config.get("network")
    network = network if isinstance(network, dict) else {}
    name = str(network.get("name") or (run.plans[0].network if run.plans else "") or "a network")
    details = [
        f"{key.replace('_', ' ')} {network[key]}"
        for key in ("filters", "depth", "norm", "stem_stride")
        if network.get(key) is not None
    ]
    if run.plans:
        details.append(_parameters(sum(stage.parameters for stage in run.plans[0].stages)))
    return f"{name} ({', '.join(details)})" if details else name


def _trained(run: RunFolder) -> str:
    if not run.steps:
        return f"No optimizer step of {network_text(run)} has been recorded yet."
    devices = max((plan.choices.processes for plan in run.plans), default=0)
    where = f" on {counted(devices, 'device')}" if devices else ""
    reached = max(step.stage for step in run.steps) + 1
    curriculum = run.config.get("curriculum")
    planned = len(curriculum) if isinstance(curriculum, list) else reached
    patches = ", then ".join(run.patch_text(stage) for stage in range(reached))
    stages = counted(reached, "curriculum stage") if reached >= planned else f"{reached} of {planned} curriculum stages"
    time = seconds_text(sum(step.seconds for step in run.steps))
    return (
        f"{network_text(run)} was trained{where} for {counted(len(run.steps), 'optimizer step')} "
        f"in {stages} ({patches}); the steps took {time} in all."
    )


def _selected(run: RunFolder) -> str:
    best = run.best
    if best is None or best.score is None:
        return "No validation has been recorded yet, so no model has been selected."
    return f"The selected model is that of step {best.step}, with a mean validation Dice of {_dice(best.score)}."


def _compared(comparison: Comparison) -> str:
    rows = [
        f"{row.label}: {_dice(row.evaluation.average)} in {seconds_text(row.seconds_per_volume)}"
        for row in comparison.rows
    ]
    counts = {len(row.evaluation.cases) for row in comparison.rows}
    cases = counted(counts.pop(), "case") if len(counts) == 1 else "the cases"
    return f"Average Dice on {cases}, and time per volume: {'; '.join(rows)}."


def _dice(value: float | None) -> str:
    return "not defined (nothing could be scored)" if value is None else dice_text(value)


def _parameters(count: int) -> str:
    return f"{count / 1e6:.1f} million parameters" if count >= 1e6 else f"{count:,} parameters"
