"""Optuna as the sampler of design points, and as the study that dashboards show."""
