"""Shared base of all subpackages; it imports none of them."""
