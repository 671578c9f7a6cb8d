"""What networks are built from, in the plain formulation."""
