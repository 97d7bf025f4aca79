"""Derivatives beyond the gradient: forward mode, and second derivatives."""
