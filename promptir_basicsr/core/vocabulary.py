"""The words that all rooms share."""

DEGRADATION_TYPES = ('denoise', 'derain', 'dehaze', 'deblur', 'lowlight')
"""The vocabulary of degradations; the position is the label (the class ids of PIP's released program)."""
