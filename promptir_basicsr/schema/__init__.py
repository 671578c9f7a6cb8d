"""What options there are, with their types and meanings: the one place that decides on it.

Option files are checked by these models, values of the command line typed by them, and `docs/options_reference.md` and
`docs/options.schema.json` written from them by `python -m promptir_basicsr.schema --write docs`.
"""
