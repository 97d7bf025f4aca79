"""Measurements of numbagn beside a copy of the same bytes and other libraries: `python -m benchmarks --help`."""
