"""How a network is run: number formats, memory, compilation, processes, random numbers."""
