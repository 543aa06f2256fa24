"""What a report is of: the base, what it memorises, where its adapter sits, and when."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePath

from pmlray.config.bases.model_spec import Model
from pmlray.config.bases.models import DESCRIPTIONS
from pmlray.config.task_spec import Task
from pmlray.types import Observation


def about_runs(
    model: Model, task: Task, places: str, observations: Sequence[Observation]
) -> tuple[str, ...]:
    """Return what the runs of a study are, each as a few words.

    places: where the adapters sit, as specs describe it.
    """
    n = len(observations)
    return (
        base_name(model),
        task_words(task),
        f"adapter at {places}",
        *((f"{n:,} {'run' if n == 1 else 'runs'}{_when(observations)}",) if n else ()),
    )


def base_name(model: Model) -> str:
    """Return the base's id, with a description where the id is pmlray's own name for it."""
    pinned = f" @ {model.revision}" if model.revision else ""
    known = DESCRIPTIONS.get(model.id)
    return model.id + pinned + (f" ({known})" if known else "")


def task_words(task: Task) -> str:
    """Return what a task memorises."""
    if task.kind == "long_context":
        return "random tokens" if task.random_ratio == 100 else f"text, {task.random_ratio}% random"
    if task.kind == "records":
        return f"records of {PurePath(task.records or '').name}"
    return {"phonebook": "phone books", "linear_rule": "a linear rule"}[task.kind]


def _when(observations: Sequence[Observation]) -> str:
    """Return the days on which runs finished, by Coordinated Universal Time; empty where they do
    not tell, as in tables."""
    days = {str(day)[:10] for o in observations if (day := o.provenance.get("finished"))}
    if not days:
        return ""
    first, last = min(days), max(days)
    return f" of {first}" if first == last else f" of {first} to {last}"
