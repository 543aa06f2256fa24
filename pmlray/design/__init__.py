"""Choice of the next run to measure, and the cost of runs."""

from pmlray.design.acquisition import LAW_RULES, OPTUNA_RULES, RULES, Acquisition, DesignState
from pmlray.design.cost import (
    CostModel,
    PlaceWork,
    charged_steps,
    prior_cost,
    prior_cost_of_places,
)
from pmlray.design.field import FittedForm, LawField, law_field
from pmlray.design.history import History
from pmlray.design.planner import (
    DesignSettings,
    DeviceShare,
    PendingSpend,
    choose_run,
    device_share,
    open_candidates,
)
from pmlray.design.reasons import why_chosen
from pmlray.design.space import ChosenRun, DesignSpace, Placements, Replicate, nearest_cell

__all__ = [
    "LAW_RULES",
    "OPTUNA_RULES",
    "RULES",
    "Acquisition",
    "ChosenRun",
    "CostModel",
    "DesignSettings",
    "DesignSpace",
    "DesignState",
    "DeviceShare",
    "FittedForm",
    "History",
    "LawField",
    "PendingSpend",
    "PlaceWork",
    "Placements",
    "Replicate",
    "charged_steps",
    "choose_run",
    "device_share",
    "law_field",
    "nearest_cell",
    "open_candidates",
    "prior_cost",
    "prior_cost_of_places",
    "why_chosen",
]
