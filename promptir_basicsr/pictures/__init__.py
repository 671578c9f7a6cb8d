"""Files of pictures, read and written with all that they hold."""
