"""Image files, read and written with their metadata."""

from promptir_basicsr.pictures.io import read_picture, write_picture
from promptir_basicsr.pictures.picture import Picture, PictureError

__all__ = ['Picture', 'PictureError', 'read_picture', 'write_picture']
