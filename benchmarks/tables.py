"""Markdown tables from the result files."""

from collections import defaultdict

import numpy as np

from numbagn.command.bench.groups import Group, Row, dates, geometric_mean, groups_of, versions

WARNING = "\N{WARNING SIGN}"


def speed_tables(rows: list[Row]) -> str:
    """A summary by variant, then every case folded away."""
    groups = groups_of(rows)
    machine = rows[0]["machine"]
    lines = [
        f"Measured on {machine}, {dates(rows)}; {versions(rows)}.",
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
        f"{rows[0]['machine']}, {dates(rows)}.",
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
        speedups = [speedup for g in groups if (speedup := _speedup(g, output)) is not None]
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
            *(_speedup_text(_speedup(group, output)) for output in ("out", "fresh")),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    wrong = sorted({f"{r['peer']} ({g.case.name}: {r['max_error']})" for g in groups for r in g.wrong()})
    return [*lines, "", f"Left out, their results being wrong: {', '.join(wrong)}."] if wrong else lines


def _number(row: Row | None, column: str, spec: str) -> str:
    return format(float(row[column]), spec) if row else "-"


def _speedup(group: Group, output: str) -> float | None:
    """How many times faster than the best peer numbagn is; None where either is missing."""
    ours = group.ours(output)
    return float(group.best["median_us"]) / float(ours["median_us"]) if ours and group.best else None


def _speedup_text(speedup: float | None) -> str:
    if speedup is None:
        return "-"
    return f"{speedup:.2f}x" if speedup >= 1 else f"**{WARNING} {speedup:.2f}x**"


def _error_text(error: str) -> str:
    value = float(error)
    return "NaN" if value != value else f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e")


def pipeline_table(rows: list[Row]) -> str:
    """One line a block and number of threads: the block's time and what its norms take of it, for each norm."""
    norms = list(dict.fromkeys(row["norm"] for row in rows))
    named = {row["norm"]: f"{row['norm']} {row['version']}" for row in rows}
    lines = [
        f"Milliseconds, medians of turns in {rows[0]['starts']} fresh processes; {rows[0]['machine']}, {dates(rows)}.",
        f"All blocks are within {max(float(row['max_error']) for row in rows):.0e} of the block in float64.",
        "",
        "| x, groups | threads | "
        + " | ".join(f"norms by {named[norm]}: ms (share of the block)" for norm in norms)
        + " | "
        + " | ".join(f"block with {norm}" for norm in norms)
        + " |",
        "|---|---|" + "--:|" * (2 * len(norms)),
    ]
    parts = defaultdict(dict)
    for row in rows:
        parts[row["shape"], row["G"], row["threads"]][row["norm"]] = row
    for (shape, groups, threads), part in parts.items():
        cells = [
            f"{part[n]['norms_ms']} ({float(part[n]['norms_percent']):.2g} %)" if n in part else "-" for n in norms
        ]
        cells += [f"{float(part[n]['block_ms']):.0f}" if n in part else "-" for n in norms]
        lines.append(f"| {shape}, {groups} | {threads} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def padded_table(rows: list[Row]) -> str:
    """One line a shape, layout and direction: what the plain call takes, and times that with each kind of padding."""
    valid = list(dict.fromkeys(row["valid"] for row in rows))
    threads = list(dict.fromkeys(row["threads"] for row in rows))
    heads = [f"{v}; {t} thread{'s' if t != '1' else ''}" for t in threads for v in valid]
    lines = [
        f"In times of the plain call, medians of {rows[0]['starts']} fresh processes; {rows[0]['machine']}, "
        f"{dates(rows)}.",
        "",
        "| x, groups | layout | direction | plain call, us | " + " | ".join(heads) + " |",
        "|---|---|---" + "|--:" * (1 + len(heads)) + "|",
    ]
    parts = defaultdict(dict)
    for row in rows:
        parts[row["case"], row["shape"], row["G"], row["layout"], row["direction"]][row["threads"], row["valid"]] = row
    for (case, shape, groups, layout, direction), part in parts.items():
        plain = ", ".join(f"{float(part[t, valid[0]]['plain_us']):.0f}" for t in threads)
        cells = [f"{float(part[t, v]['ratio']):.2f}" for t in threads for v in valid]
        order = "channels first" if layout == "NCHW" else "channels last"
        lines.append(f"| {case} {shape}, {groups} | {order} | {direction} | {plain} | " + " | ".join(cells) + " |")
    heads = [
        f"{geometric_mean([float(r['ratio']) for r in rows if (r['threads'], r['valid']) == (t, v)]):.2f}"
        for t in threads
        for v in valid
    ]
    return "\n".join([*lines, "| geometric mean | | | | " + " | ".join(heads) + " |"])


def errors_by_point(rows: list[Row]) -> dict[str, dict[int, np.ndarray]]:
    """The test errors by norm and batch size, largest first, in the order of their seeds."""
    errors = defaultdict(lambda: defaultdict(list))
    for row in sorted(rows, key=lambda row: (-int(row["batch_size"]), int(row["seed"]))):
        errors[row["norm"]][int(row["batch_size"])].append(float(row["error_percent"]))
    norms = dict.fromkeys(row["norm"] for row in rows)
    return {norm: {size: np.array(values) for size, values in errors[norm].items()} for norm in norms}


def mean_and_error(values: np.ndarray) -> tuple[float, float]:
    """The mean and its standard error, NaN of a single value."""
    error = values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else np.nan
    return float(values.mean()), float(error)


def batch_size_table(rows: list[Row]) -> str:
    """Mean error and its standard error by norm and batch size."""
    first, errors = rows[0], errors_by_point(rows)
    sizes = list(errors[first["norm"]])
    lines = [
        f"Test error in percent, mean ± standard error over {len(errors[first['norm']][sizes[0]])} seeds; "
        f"{first['training_samples']} images to train on, {first['test_samples']} to test with, "
        f"{first['epochs']} epochs; {dates(rows)}. The last column is the mean of each seed's difference.",
        "",
        "| images in a batch | " + " | ".join(map(str, sizes)) + f" | {sizes[-1]} less {sizes[0]} |",
        "|---" + "|--:" * (len(sizes) + 1) + "|",
    ]
    for norm, by_size in errors.items():
        cells = ["{:.1f} ± {:.1f}".format(*mean_and_error(by_size[size])) for size in sizes]
        cells.append("{:+.1f} ± {:.1f}".format(*mean_and_error(by_size[sizes[-1]] - by_size[sizes[0]])))
        lines.append(f"| {norm} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def cold_start_table(rows: list[Row]) -> str:
    """How long the first steps of a process take, with an empty cache and a full one."""
    lines = [
        f"{rows[0]['machine']}, {dates(rows)}; medians of {rows[0]['repeats']} fresh processes each; "
        f"NumPy and Numba were imported before ({float(rows[0]['import_numpy_s']):.1g} and "
        f"{float(rows[0]['import_numba_s']):.1g} s).",
        "",
        "| x, groups | compiled kernels in the cache | `import numbagn` | first call | second call |",
        "|---|---|--:|--:|--:|",
    ]
    for row in rows:
        cached = "yes" if row["cache"] == "second process" else "none yet"
        cells = [f"{row['shape']}, {row['G']}", cached]
        cells += [_time(float(row[step])) for step in ("import_numbagn_s", "first_call_s", "second_call_s")]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _time(seconds: float) -> str:
    scale, unit = next((s, u) for s, u in ((1, "s"), (1e-3, "ms"), (1e-6, "us")) if seconds >= s / 10)
    return f"{seconds / scale:.2g} {unit}"
