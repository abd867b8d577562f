"""Continual learning as pure JAX functions."""
