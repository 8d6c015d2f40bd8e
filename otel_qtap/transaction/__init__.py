"""Requests with their responses, from the HTTP events of one connection."""
