"""Figures of the reports, each a Vega-Lite chart."""
