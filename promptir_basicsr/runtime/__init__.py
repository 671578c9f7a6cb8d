"""Running networks: precision, memory, compilation, processes, random numbers."""
