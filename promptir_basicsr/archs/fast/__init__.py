"""The fast formulation of blocks, with the same results as the plain one."""
