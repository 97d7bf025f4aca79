"""Measuring on any machine: cases, peers, limits and rounds of `python -m numbagn bench` and of benchmarks/."""
