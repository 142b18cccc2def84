"""Checkpoints in the formats of others: timm, ONNX, the Hugging Face Hub. No Ray.

from soda_dist.export.exporter import export
export("RUN", "timm", "FOLDER")
"""
