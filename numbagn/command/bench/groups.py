"""Measured rows put together: all of one (variant, case, threads), and what stands out in them."""

from collections import defaultdict
from math import exp, log
from typing import Any

from .cases import CASE_NAMES, VARIANT_NAMES, case_named

Row = dict[str, Any]
LIMITS = ("copy", "read+copy")
# Below this a call costs more than its work: such cases are judged by their time, not by a share of a copy's speed.
SMALL_BYTES = 64 * 1024


class Group:
    """All rows of one (variant, case, threads)."""

    def __init__(self, rows: list[Row]) -> None:
        self.rows = {(row["peer"], row["output"]): row for row in rows}
        self.variant, self.threads = rows[0]["variant"], int(rows[0]["threads"])
        self.case = case_named(rows[0]["case"])
        array_count = 3 if rows[0]["direction"] == "backward" else 2
        self.small = int(rows[0]["bytes"]) / array_count < SMALL_BYTES
        rivals = [row for row in rows if is_rival(row) and row["status"] == "ok"]
        self.best = min(rivals, key=lambda row: float(row["median_us"]), default=None)

    def ours(self, output: str) -> Row | None:
        """numbagn's row; None where it is missing, or its result is wrong and its time therefore worth nothing."""
        row = self.rows.get(("numbagn", output))
        return row if row and row["status"] == "ok" else None

    def wrong(self) -> list[Row]:
        return [row for row in self.rows.values() if row["status"] != "ok"]


def groups_of(rows: list[Row]) -> list[Group]:
    """In the order of the tables of variants and cases, fewest threads first."""
    parts = defaultdict(list)
    for row in rows:
        parts[row["variant"], row["case"], row["threads"]].append(row)
    groups = [Group(part) for part in parts.values()]
    return sorted(groups, key=lambda g: (VARIANT_NAMES.index(g.variant), g.threads, CASE_NAMES.index(g.case.name)))


def geometric_mean(values: list[float]) -> float:
    return exp(sum(map(log, values)) / len(values))


def is_rival(row: Row) -> bool:
    return row["peer"] not in LIMITS and not row["peer"].startswith("numbagn")


def dates(rows: list[Row]) -> str:
    dates = sorted({row["date"] for row in rows})
    return dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"


def versions(rows: list[Row]) -> str:
    peers = {row["peer"]: row["peer_version"] for row in rows if row["peer_version"] and row["peer"] != "numbagn layer"}
    texts = [f"{peer} {version}" for peer, version in sorted(peers.items())]
    return ", ".join([f"numba {rows[0]['numba']}", *texts])
