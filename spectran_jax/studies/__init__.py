"""Experiments on many runs: jobs, searches, comparisons, tests of significance, tables and pages."""
