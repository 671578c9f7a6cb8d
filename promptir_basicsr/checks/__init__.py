"""Checks of a run before anything is created."""

from promptir_basicsr.checks.check import check_file
from promptir_basicsr.checks.report import Finding, Report

__all__ = ['Finding', 'Report', 'check_file']
