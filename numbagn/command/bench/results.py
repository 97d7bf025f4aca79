"""The result files: CSV, one row a measurement, each row saying where and when it was made."""

import csv
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from .machine import describe_machine

PROVENANCE = ("machine", "date", "numba", "numpy")


def provenance() -> dict[str, str]:
    versions = {"numba": metadata.version("numba"), "numpy": np.__version__}
    return {"machine": describe_machine(), "date": datetime.now(UTC).strftime("%Y-%m-%d"), **versions}


def read(path: Path) -> list[dict[str, str]]:
    """The rows, or none where there is no such file."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def write(path: Path, columns: tuple[str, ...], rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, (*columns, *PROVENANCE), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
