"""Images in LMDBs: reader, writer and plan of the databases."""
