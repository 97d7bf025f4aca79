"""Layers: parameters kept together with the options of a call."""
