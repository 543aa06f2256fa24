"""Optuna as the chooser of design points, and as the study that dashboards show."""
