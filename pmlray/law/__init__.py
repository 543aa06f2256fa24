"""The parametric memory law: its forms, their fit, and how sure one can be of it."""

from pmlray.law.averaging import AveragedLaw, AveragedSamples, average_laws, form_weights
from pmlray.law.broken import BrokenLaw
from pmlray.law.ceilings import CeilingLaw, ExponentialCeilingLaw
from pmlray.law.correlation import EntangledPair, entangled_pairs, param_correlations
from pmlray.law.data import LawData, law_data
from pmlray.law.diagnostics import extrapolation_mape, heldout_mape, mape, r2
from pmlray.law.fit import FitStatus, LawFit, fit_law, usable_points
from pmlray.law.forms import CAPPED, law_from_json
from pmlray.law.power import PowerLaw
from pmlray.law.protocol import Form, Law
from pmlray.law.read import read_law_data
from pmlray.law.residuals import ResidualStructure, residual_structure
from pmlray.law.robust import FitOptions
from pmlray.law.sizing import Estimate, Sizing, size_for
from pmlray.law.summary import LawSummary, TargetPrediction, summarise
from pmlray.law.uncertainty import (
    bootstrap_law,
    derived_interval,
    param_intervals,
    prediction_interval,
)

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
    "ResidualStructure",
    "Sizing",
    "TargetPrediction",
    "average_laws",
    "bootstrap_law",
    "derived_interval",
    "entangled_pairs",
    "extrapolation_mape",
    "fit_law",
    "form_weights",
    "heldout_mape",
    "law_data",
    "law_from_json",
    "mape",
    "param_correlations",
    "param_intervals",
    "prediction_interval",
    "r2",
    "read_law_data",
    "residual_structure",
    "size_for",
    "summarise",
    "usable_points",
]
