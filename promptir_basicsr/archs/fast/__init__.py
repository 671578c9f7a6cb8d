"""The fast formulation of blocks, with the same numbers as the plain one."""
