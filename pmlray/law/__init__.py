"""Parametric memory law: its forms, their fit, and its uncertainty."""

from pmlray.law.data import LawData, law_data
from pmlray.law.fitted_law import fit_law
from pmlray.law.fitting.averaging import AveragedLaw, AveragedSamples, average_laws
from pmlray.law.fitting.fit import FitOptions, FitStatus, LawFit, usable_points
from pmlray.law.forms.broken import BrokenLaw
from pmlray.law.forms.ceiling import CeilingLaw, ExponentialCeilingLaw
from pmlray.law.forms.power import PowerLaw
from pmlray.law.forms.protocol import Form, Law
from pmlray.law.forms.registry import CAPPED, law_from_json
from pmlray.law.observed_placements import placement_from_facts
from pmlray.law.placement_choice import PlacementChoice, PlacementNeed, choose_placement
from pmlray.law.placement_comparison import PlacementLawErrors, compare_placement_laws
from pmlray.law.placement_costs import measured_choices
from pmlray.law.placement_worth import PlaceWorth, depth_worths, kind_worths, placement_worths
from pmlray.law.placements import (
    PlacedPoint,
    Placement,
    Site,
    in_order,
    module_kind,
    named_placement,
    placement_at,
)
from pmlray.law.prediction import LawPrediction
from pmlray.law.read import read_law_data
from pmlray.law.recall.crossing import crossing_steps, token_table
from pmlray.law.recall.data import TokenRun, token_runs
from pmlray.law.recall.fit import fit_recall
from pmlray.law.recall.forecast import RecallForecast, forecast_recall
from pmlray.law.recall.recall_law import RecallLaw, RecallShares
from pmlray.law.recall.transition import Transition, measure_transition
from pmlray.law.sizing import Estimate, Sizing, size_for
from pmlray.law.summary import LawSummary
from pmlray.law.target_predictions import TargetPrediction
from pmlray.law.validation.correlation import EntangledPair, entangled_pairs, param_correlations
from pmlray.law.validation.diagnostics import mape, r2
from pmlray.law.validation.intervals import param_intervals
from pmlray.law.validation.residuals import ResidualStructure, residual_structure
from pmlray.law.validation.unseen import UnseenError

__all__ = [
    "CAPPED",
    "AveragedLaw",
    "AveragedSamples",
    "BrokenLaw",
    "CeilingLaw",
    "EntangledPair",
    "Estimate",
    "ExponentialCeilingLaw",
    "FitOptions",
    "FitStatus",
    "Form",
    "Law",
    "LawData",
    "LawFit",
    "LawPrediction",
    "LawSummary",
    "PlaceWorth",
    "PlacedPoint",
    "Placement",
    "PlacementChoice",
    "PlacementLawErrors",
    "PlacementNeed",
    "PowerLaw",
    "RecallForecast",
    "RecallLaw",
    "RecallShares",
    "ResidualStructure",
    "Site",
    "Sizing",
    "TargetPrediction",
    "TokenRun",
    "Transition",
    "UnseenError",
    "average_laws",
    "choose_placement",
    "compare_placement_laws",
    "crossing_steps",
    "depth_worths",
    "entangled_pairs",
    "fit_law",
    "fit_recall",
    "forecast_recall",
    "in_order",
    "kind_worths",
    "law_data",
    "law_from_json",
    "mape",
    "measure_transition",
    "measured_choices",
    "module_kind",
    "named_placement",
    "param_correlations",
    "param_intervals",
    "placement_at",
    "placement_from_facts",
    "placement_worths",
    "r2",
    "read_law_data",
    "residual_structure",
    "size_for",
    "token_runs",
    "token_table",
    "usable_points",
]
