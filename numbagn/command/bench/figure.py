"""The figure of speed: share of copy speed by case and by variant, and the time of small calls."""

from collections import defaultdict
from pathlib import Path
from typing import Any

from .cases import VARIANT_NAMES
from .groups import Group, Row, geometric_mean, groups_of

# (peer, output): label, colour, marker, filled. Colours of the Okabe-Ito set, told apart by marker as well.
STYLES = {
    ("numbagn", "out"): ("numbagn, out=", "#D55E00", "o", True),
    ("numbagn", "fresh"): ("numbagn, fresh result", "#D55E00", "o", False),
    ("numbagn layer", "fresh"): ("numbagn layer object", "#D55E00", "*", True),
    ("torch", "fresh"): ("torch", "#0072B2", "s", True),
    ("onnxruntime", "out"): ("onnxruntime", "#009E73", "^", True),
    ("openvino", "out"): ("openvino", "#CC79A7", "D", True),
    ("jax", "fresh"): ("jax", "#E69F00", "v", True),
    ("numpy", "fresh"): ("numpy", "#777777", "X", True),
    ("read+copy", "out"): ("reading each group, then copying it", "#000000", "|", True),
}
Points = dict[tuple[str, str], list[float | None]]


def draw(rows: list[Row], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    threads = max(int(row["threads"]) for row in rows)
    groups = [group for group in groups_of(rows) if group.threads == threads]
    forward = [group for group in groups if group.variant == "forward"]
    large, small = [g for g in forward if not g.small], [g for g in forward if g.small]
    by_variant = _variant_means(groups)

    heights = (max(1, len(by_variant)), max(1, len(small)))
    figure = pyplot.figure(figsize=(13, 1.9 + 0.36 * max(len(large), sum(heights) + 3)), layout="constrained")
    left, right = figure.subfigures(1, 2)
    _draw_shares(left.subplots(), "float32, channels first, by shape", [_label(g) for g in large], _shares(large))
    upper, lower = right.subplots(2, 1, height_ratios=heights)
    title = "geometric mean of each variant's shapes from 64 KiB up"
    _draw_shares(upper, title, list(by_variant), _transposed(list(by_variant.values())))
    times = _transposed([{key: float(row["median_us"]) for key, row in g.rows.items()} for g in small])
    times.pop(("read+copy", "out"), None)  # a limit of bandwidth says nothing here
    _draw_points(lower, [_label(g) for g in small], times)
    lower.set_xscale("log")
    lower.xaxis.set_major_formatter("{x:g}")
    lower.set_title("small arrays: microseconds a call (left is better)", fontsize=10, loc="left")
    plural = "s" if threads > 1 else ""
    figure.suptitle(
        f"Group norm as a share of the speed of copying the array (100 % = a copy; right is better), {threads} "
        f"thread{plural}\n{rows[0]['machine']}; {max(row['date'] for row in rows)}; all peers in turns in one process, "
        f"median of {rows[0]['starts']}",
        fontsize=11,
    )
    known = {}
    for axes in figure.axes:
        known |= dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    shown = [label for label, *_ in STYLES.values() if label in known]
    handles = [known[label] for label in shown]
    figure.legend(handles, shown, loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _label(group: Group) -> str:
    return f"{group.case.name}  {'x'.join(map(str, group.case.shape))}, G {group.case.groups}"


def _share(row: Row) -> float:
    return 100 / float(row["ratio_to_copy"])


def _shares(groups: list[Group]) -> Points:
    """In percent; results that are wrong are not shown."""
    return _transposed([{key: _share(row) for key, row in g.rows.items() if row["status"] == "ok"} for g in groups])


def _variant_means(groups: list[Group]) -> dict[str, dict[tuple[str, str], float]]:
    """Only of peers that took part in all of a variant's cases: a mean over other cases would not compare."""
    parts = defaultdict(list)
    for group in groups:
        if not group.small:
            parts[group.variant].append(group)
    means = {}
    for variant in sorted(parts, key=VARIANT_NAMES.index):
        shares = _shares(parts[variant])
        means[variant] = {key: geometric_mean(values) for key, values in shares.items() if None not in values}
    return means


def _transposed(columns: list[dict[tuple[str, str], float]]) -> Points:
    return {key: [column.get(key) for column in columns] for key in STYLES if any(key in c for c in columns)}


def _draw_shares(axes: Any, title: str, labels: list[str], points: Points) -> None:
    _draw_points(axes, labels, points)
    axes.axvline(100, color="#000000", linewidth=1)
    axes.set_xlim(left=0)
    axes.xaxis.set_major_formatter("{x:.0f} %")
    axes.set_title(title, fontsize=10, loc="left")


def _draw_points(axes: Any, labels: list[str], points: Points) -> None:
    """One line for each label, read from top to bottom, one marker for each peer on it."""
    for key, values in reversed(points.items()):  # numbagn last, on top
        text, colour, marker, filled = STYLES[key]
        known = [(value, place) for place, value in enumerate(values) if value is not None]
        xs, ys = [value for value, _ in known], [place for _, place in known]
        size = {"o": 70, "*": 60, "|": 160}.get(marker, 34)
        face = {} if marker == "|" else {"facecolors": colour if filled else "none"}
        axes.scatter(xs, ys, size, marker=marker, label=text, linewidths=1.6, color=colour, zorder=3, **face)
    axes.set_yticks(range(len(labels)), labels, fontsize=9)
    axes.set_ylim(max(1, len(labels)) - 0.5, -0.5)
    axes.grid(axis="both", color="#dddddd", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
