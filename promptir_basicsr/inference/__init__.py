"""Restore images of any size."""

from promptir_basicsr.inference.restorer import Restorer, restore
from promptir_basicsr.inference.restoring import Settings, restore_images

__all__ = ['Restorer', 'Settings', 'restore', 'restore_images']
