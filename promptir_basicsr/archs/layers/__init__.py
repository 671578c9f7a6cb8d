"""Layers of the networks, in the plain formulation."""
