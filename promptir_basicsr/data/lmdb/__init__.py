"""Images in LMDBs: read, written, and what is to be stored where."""
