"""Self-contained HTML page of figures, tables and before/after images."""

from promptir_basicsr.explain.page.model import Comparison, Figure, Report, Section, Table
from promptir_basicsr.explain.page.page import write_page

__all__ = ['Comparison', 'Figure', 'Report', 'Section', 'Table', 'write_page']
