"""The parametric memory law: its forms, their fit, and how sure one can be of it."""

from pmlray.law.averaging import AveragedLaw, AveragedSamples, average_laws, form_weights
from pmlray.law.data import LawData, law_data, read_law_data
from pmlray.law.diagnostics import extrapolation_mape, heldout_mape, mape, r2
from pmlray.law.fit import FitStatus, LawFit, fit_law, usable_points
from pmlray.law.forms import CeilingLaw, PowerLaw, law_from_json
from pmlray.law.protocol import Form, Law
from pmlray.law.summary import LawSummary, TargetPrediction, summarise
from pmlray.law.uncertainty import (
    bootstrap_law,
    derived_interval,
    param_intervals,
    prediction_interval,
)

__all__ = [
    "AveragedLaw",
    "AveragedSamples",
    "CeilingLaw",
    "FitStatus",
    "Form",
    "Law",
    "LawData",
    "LawFit",
    "LawSummary",
    "PowerLaw",
    "TargetPrediction",
    "average_laws",
    "bootstrap_law",
    "derived_interval",
    "extrapolation_mape",
    "fit_law",
    "form_weights",
    "heldout_mape",
    "law_data",
    "law_from_json",
    "mape",
    "param_intervals",
    "prediction_interval",
    "r2",
    "read_law_data",
    "summarise",
    "usable_points",
]
