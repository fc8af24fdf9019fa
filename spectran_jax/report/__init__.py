"""The report of a run: one self-contained HTML page, and tables for the terminal.

Takes NumPy arrays and plain Python only, and needs no JAX. Matplotlib is imported where a page is drawn.
"""

from spectran_jax.report.data import Parameter, Recommended, ReportData, UserExample
from spectran_jax.report.page import render, write_report
from spectran_jax.report.statistics import effective_rank, energy_beyond, live_share
from spectran_jax.report.terminal import metrics_table, parameter_table, phase_table

__all__ = [
    "Parameter",
    "Recommended",
    "ReportData",
    "UserExample",
    "effective_rank",
    "energy_beyond",
    "live_share",
    "metrics_table",
    "parameter_table",
    "phase_table",
    "render",
    "write_report",
]
