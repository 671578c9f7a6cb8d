"""Export of networks to ONNX and torch.export, and publishing of weights."""

from promptir_basicsr.export.exporter import Difference, ExportMismatch, export_onnx, export_program

__all__ = ['Difference', 'ExportMismatch', 'export_onnx', 'export_program']
