"""Measurements of numbagn beside a copy of the same bytes and other libraries: `python -m benchmarks --help`."""

from pathlib import Path

RESULTS = Path(__file__).parent / "results"
FIGURES = Path(__file__).parent / "figures"
