"""The table that `python -m numbagn bench` prints."""

from .groups import Group, Row, dates, groups_of, is_rival, versions


def markdown(rows: list[Row]) -> str:
    """One row a task, one column a peer, in microseconds; what is fastest is bold."""
    groups = groups_of(rows)
    columns = list(dict.fromkeys(row["peer"] for row in rows if is_rival(row)))
    heads = ["variant", "case", "threads", "copy us", "numbagn us", "GB/s", "numbagn / copy"]
    lines = [
        f"Group norm on {rows[0]['machine']}, {dates(rows)}; {versions(rows)}.",
        "Microseconds a call, medians of turns taken in one process; the fastest is bold. `copy` is the time to copy",
        "the same bytes (backward: to read dy and x and to write dx); numbagn writes to `out=`.",
        "",
        "| " + " | ".join([*heads, *(f"{peer} us" for peer in columns)]) + " |",
        "|---|---" + "|--:" * (len(heads) - 2 + len(columns)) + "|",
        *(_line(group, columns) for group in groups),
    ]
    wrong = sorted({f"{row['peer']} in {row['variant']} {row['case']}" for g in groups for row in g.wrong()})
    if wrong:
        lines += ["", f"Left out, their results being wrong: {', '.join(wrong)}."]
    return "\n".join(lines)


def _line(group: Group, columns: list[str]) -> str:
    ours = group.ours("out")
    theirs = {peer: _fastest(group, peer) for peer in columns}
    known = [row for row in (ours, *theirs.values()) if row]
    best = min((float(row["median_us"]) for row in known), default=0.0)

    def time(row: Row | None) -> str:
        if row is None:
            return "-"
        text = f"{float(row['median_us']):.4g}"
        return f"**{text}**" if float(row["median_us"]) == best else text

    copy = group.rows["copy", "out"]
    cells = [
        group.variant,
        f"{group.case.name} {'x'.join(map(str, group.case.shape))}, G {group.case.groups}",
        str(group.threads),
        f"{float(copy['median_us']):.4g}",
        time(ours),
        f"{float(ours['gb_per_s']):.3g}" if ours else "-",
        f"{float(ours['ratio_to_copy']):.2f}" if ours else "-",
        *(time(row) for row in theirs.values()),
    ]
    return "| " + " | ".join(cells) + " |"


def _fastest(group: Group, peer: str) -> Row | None:
    rows = [row for (name, _), row in group.rows.items() if name == peer and row["status"] == "ok"]
    return min(rows, key=lambda row: float(row["median_us"]), default=None)
