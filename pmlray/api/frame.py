"""Observations as a pandas frame."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pmlray.config import SearchSpec
from pmlray.errors import INSTALL_NOTEBOOK, SpecError
from pmlray.study.findings.placed_law import params_per_rank
from pmlray.types import Observation

if TYPE_CHECKING:
    from pandas import DataFrame


def frame_of(spec: SearchSpec, observations: Sequence[Observation]) -> DataFrame:
    """Return a frame with a row for each observation, in their order.

    The columns have the names of stored observations, so that `read_law_data` reads a CSV of it;
    `placement` and `adapter_params` are those of a search over several placements. SpecError where
    pandas is not installed.
    """
    try:
        import pandas
    except ImportError as error:
        raise SpecError(f"a frame needs pandas ({error}); run: {INSTALL_NOTEBOOK}") from error
    several = spec.space.placement is not None
    columns = [name for name in _COLUMNS if several or name not in _OF_PLACEMENT]
    return pandas.DataFrame([_row(spec, o) for o in observations], columns=columns)


_COLUMNS = (
    *("run_key", "phase", "method", "placement", "lora_rank", "seq_len", "train_steps"),
    *("sequence_id", "seed", "round", "supervised_tokens", "adapter_params", "learning_rate"),
    *("base_loss", "final_loss", "delta_loss", "token_recall", "prefix_recall", "exact_recall"),
    *("answer_recall", "stubborn_tokens", "control_delta_loss", "control_recall"),
    *("prose_delta_loss", "grad_norm", "stopped_early", "gpu_seconds", "charged_steps"),
    *("tokens_per_second", "peak_memory_bytes"),
)
_OF_PLACEMENT = ("placement", "adapter_params")


def _row(spec: SearchSpec, o: Observation) -> dict[str, Any]:
    per_rank = params_per_rank(spec, o)
    of_recall = {
        "token_recall": o.recall.token,
        "prefix_recall": o.recall.prefix,
        "exact_recall": o.recall.exact,
        "answer_recall": o.recall.right_answers,
        "stubborn_tokens": o.recall.n_stubborn,
    }
    of_point = {
        "lora_rank": o.point.lora_rank,
        "seq_len": o.point.seq_len,
        "train_steps": o.point.train_steps,
        "placement": o.point.placement,
        "adapter_params": None if per_rank is None else per_rank * o.point.lora_rank,
    }
    found = of_recall | of_point
    return {name: found[name] if name in found else getattr(o, name) for name in _COLUMNS}
