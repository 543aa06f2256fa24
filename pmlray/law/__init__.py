"""The parametric memory law: its forms, their fit, and how sure one can be of it."""

from pmlray.law.averaging import AveragedLaw, AveragedSamples, average_laws
from pmlray.law.broken import BrokenLaw
from pmlray.law.ceilings import CeilingLaw, ExponentialCeilingLaw
from pmlray.law.correlation import EntangledPair, entangled_pairs, param_correlations
from pmlray.law.crossing import crossing_steps, token_table
from pmlray.law.data import LawData, law_data
from pmlray.law.diagnostics import mape, r2
from pmlray.law.fit import FitOptions, FitStatus, LawFit, usable_points
from pmlray.law.forms import CAPPED, law_from_json
from pmlray.law.power import PowerLaw
from pmlray.law.protocol import Form, Law
from pmlray.law.read import read_law_data
from pmlray.law.recall import RecallLaw, RecallShares
from pmlray.law.recall_data import TokenRun, token_runs
from pmlray.law.recall_fit import fit_recall
from pmlray.law.recall_forecast import RecallForecast, forecast_recall
from pmlray.law.residuals import ResidualStructure, residual_structure
from pmlray.law.sizing import Estimate, Sizing, size_for
from pmlray.law.summary import LawSummary, TargetPrediction, fit_law
from pmlray.law.transition import Transition, measure_transition
from pmlray.law.uncertainty import param_intervals
from pmlray.law.unseen import UnseenError

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
    "LawSummary",
    "PowerLaw",
    "RecallForecast",
    "RecallLaw",
    "RecallShares",
    "ResidualStructure",
    "Sizing",
    "TargetPrediction",
    "TokenRun",
    "Transition",
    "UnseenError",
    "average_laws",
    "crossing_steps",
    "entangled_pairs",
    "fit_law",
    "fit_recall",
    "forecast_recall",
    "law_data",
    "law_from_json",
    "mape",
    "measure_transition",
    "param_correlations",
    "param_intervals",
    "r2",
    "read_law_data",
    "residual_structure",
    "size_for",
    "token_runs",
    "token_table",
    "usable_points",
]
