"""Markdown tables from the result files."""

from collections import defaultdict
from math import exp, log
from typing import Any

from .cases import CASE_NAMES, VARIANT_NAMES, case_named

Row = dict[str, Any]
LIMITS = ("copy", "read+copy")
# Below this a call costs more than its work: such cases are judged by their time, not by a share of a copy's speed.
SMALL_BYTES = 64 * 1024
WARNING = "\N{WARNING SIGN}"


class Group:
    """All rows of one (variant, case, threads)."""

    def __init__(self, rows: list[Row]) -> None:
        self.rows = {(row["peer"], row["output"]): row for row in rows}
        self.variant, self.threads = rows[0]["variant"], int(rows[0]["threads"])
        self.case = case_named(rows[0]["case"])
        array_count = 3 if rows[0]["direction"] == "backward" else 2
        self.small = int(rows[0]["bytes"]) / array_count < SMALL_BYTES
        rivals = [row for row in rows if _is_rival(row) and row["status"] == "ok"]
        self.best = min(rivals, key=lambda row: float(row["median_us"]), default=None)

    def ours(self, output: str) -> Row | None:
        """numbagn's row; None where it is missing, or its result is wrong and its time therefore worth nothing."""
        row = self.rows.get(("numbagn", output))
        return row if row and row["status"] == "ok" else None

    def wrong(self) -> list[Row]:
        return [row for row in self.rows.values() if row["status"] != "ok"]

    def speedup(self, output: str) -> float | None:
        """How many times faster than the best peer; None where either is missing."""
        ours = self.ours(output)
        return float(self.best["median_us"]) / float(ours["median_us"]) if ours and self.best else None


def groups_of(rows: list[Row]) -> list[Group]:
    """In the order of the tables of variants and cases, fewest threads first."""
    parts = defaultdict(list)
    for row in rows:
        parts[row["variant"], row["case"], row["threads"]].append(row)
    groups = [Group(part) for part in parts.values()]
    return sorted(groups, key=lambda g: (VARIANT_NAMES.index(g.variant), g.threads, CASE_NAMES.index(g.case.name)))


def geometric_mean(values: list[float]) -> float:
    return exp(sum(map(log, values)) / len(values))


def speed_tables(rows: list[Row]) -> str:
    """A summary by variant, then every case folded away."""
    groups = groups_of(rows)
    machine, versions = rows[0]["machine"], _versions(rows)
    lines = [
        f"Measured on {machine}, {_dates(rows)}; {versions}.",
        "Times are divided by the time of a copy of the same bytes in the same rounds (1.00 is as fast as copying;",
        "backward: as fast as reading dy and x and writing dx). `fresh` allocates its result, `out=` does not.",
        f"{WARNING} marks where another library was faster.",
        "",
        "| | threads | `out=`: time / copy, mean (worst) | `fresh` | `out=`: time / read + copy | "
        "faster than the best peer: `out=`, mean (least) | `fresh` |",
        "|---|---|---|---|---|---|---|",
    ]
    parts = defaultdict(list)
    for group in groups:
        parts[group.variant, group.threads].append(group)
    lines += [_summary_line(*key, part) for key, part in parts.items()]
    lines += ["", "Ratios to a copy are over arrays of 64 KiB and more, speed-ups over all; means are geometric.", ""]
    for (variant, threads), part in parts.items():
        title = f"{variant}, {threads} thread{'s' if threads > 1 else ''}: every case"
        lines += ["<details>", f"<summary>{title}</summary>", "", *_case_lines(part), "", "</details>", ""]
    return "\n".join(lines)


def accuracy_table(rows: list[Row]) -> str:
    """Peers by (layout, offset)."""
    columns = list(dict.fromkeys((row["layout"], row["offset"]) for row in rows))
    names = {"NCHW": "channels first", "NHWC": "channels last"}
    heads = [f"{names[layout]}, offset {offset.replace('+0', '')}" for layout, offset in columns]
    lines = [
        f"max \\|y - float64\\| for float32 data of unit variance, shape {rows[0]['shape']}, {rows[0]['G']} groups; "
        f"{rows[0]['machine']}, {_dates(rows)}.",
        "",
        "| | " + " | ".join(heads) + " |",
        "|---" * (len(columns) + 1) + "|",
    ]
    for peer in dict.fromkeys(row["peer"] for row in rows):
        mine = {(row["layout"], row["offset"]): row for row in rows if row["peer"] == peer}
        version = next(iter(mine.values()))["peer_version"]
        cells = [_error_text(mine[column]["max_error"]) if column in mine else "-" for column in columns]
        lines.append(f"| {peer} {version} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _summary_line(variant: str, threads: int, groups: list[Group]) -> str:
    large = [group for group in groups if not group.small]
    cells = [_mean_and_worst([g.ours("out") for g in large], "ratio_to_copy")]
    cells.append(_mean_and_worst([g.ours("fresh") for g in large], "ratio_to_copy"))
    cells.append(_mean_and_worst([g.ours("out") for g in large], "ratio_to_read_copy"))
    for output in ("out", "fresh"):
        speedups = [speedup for g in groups if (speedup := g.speedup(output)) is not None]
        if not speedups:
            cells.append("-")
            continue
        text, least = f"{geometric_mean(speedups):.2f}x ({min(speedups):.2f}x)", min(speedups)
        cells.append(text if least >= 1 else f"**{WARNING} {text}**")
    if any(row["peer"].startswith("numbagn") for group in groups for row in group.wrong()):
        variant = f"**{WARNING} {variant}: some results are wrong**"
    return f"| {variant} | {threads} | " + " | ".join(cells) + " |"


def _mean_and_worst(rows: list[Row | None], column: str) -> str:
    values = [float(row[column]) for row in rows if row]
    return f"{geometric_mean(values):.2f} ({max(values):.2f})" if values else "-"


def _case_lines(groups: list[Group]) -> list[str]:
    lines = [
        "| case | shape, groups | `out=` us | `fresh` us | `out=` / copy | `fresh` / copy | `out=` / read + copy | "
        "best peer | its us | its / copy | `out=` faster | `fresh` faster |",
        "|---|---|--:|--:|--:|--:|--:|---|--:|--:|--:|--:|",
    ]
    for group in groups:
        out, fresh, best = group.ours("out"), group.ours("fresh"), group.best
        cells = [
            group.case.name,
            f"{'x'.join(map(str, group.case.shape))}, {group.case.groups}",
            *(_number(row, "median_us", ".4g") for row in (out, fresh)),
            *(_number(row, "ratio_to_copy", ".2f") for row in (out, fresh)),
            _number(out, "ratio_to_read_copy", ".2f"),
            f"{best['peer']} {best['peer_version']}" if best else "-",
            _number(best, "median_us", ".4g"),
            _number(best, "ratio_to_copy", ".2f"),
            *(_speedup_text(group.speedup(output)) for output in ("out", "fresh")),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    wrong = sorted({f"{r['peer']} ({g.case.name}: {r['max_error']})" for g in groups for r in g.wrong()})
    return [*lines, "", f"Left out, their results being wrong: {', '.join(wrong)}."] if wrong else lines


def _is_rival(row: Row) -> bool:
    return row["peer"] not in LIMITS and not row["peer"].startswith("numbagn")


def _number(row: Row | None, column: str, spec: str) -> str:
    return format(float(row[column]), spec) if row else "-"


def _speedup_text(speedup: float | None) -> str:
    if speedup is None:
        return "-"
    return f"{speedup:.2f}x" if speedup >= 1 else f"**{WARNING} {speedup:.2f}x**"


def _error_text(error: str) -> str:
    value = float(error)
    return "NaN" if value != value else f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e")


def _dates(rows: list[Row]) -> str:
    dates = sorted({row["date"] for row in rows})
    return dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"


def _versions(rows: list[Row]) -> str:
    peers = {row["peer"]: row["peer_version"] for row in rows if row["peer_version"] and row["peer"] != "numbagn layer"}
    texts = [f"{peer} {version}" for peer, version in sorted(peers.items())]
    return ", ".join([f"numba {rows[0]['numba']}", *texts])
