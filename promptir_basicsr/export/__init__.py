"""Write a network for other programs."""

from promptir_basicsr.export.exporter import Difference, ExportMismatch, export_onnx, export_program

__all__ = ['Difference', 'ExportMismatch', 'export_onnx', 'export_program']
