"""Files of weights: their layouts, and which network they are of."""
