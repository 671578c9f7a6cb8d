"""Evaluation: measurements of a validation, its tables and images, and comparisons of runs."""
