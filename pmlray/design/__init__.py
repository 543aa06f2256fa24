"""Which run to measure next, and what it will cost."""

from pmlray.design.cost import CostModel, prior_cost
from pmlray.design.planner import DesignSettings, Knowledge, choose_run
from pmlray.design.space import ChosenRun, DesignSpace

__all__ = [
    "ChosenRun",
    "CostModel",
    "DesignSettings",
    "DesignSpace",
    "Knowledge",
    "choose_run",
    "prior_cost",
]
