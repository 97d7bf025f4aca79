"""The figure of the batch-size experiment: test error by batch size, one line a norm."""

from collections import defaultdict
from pathlib import Path

from numbagn._bench.groups import Row, dates

# Of the Okabe-Ito set, told apart by marker as well.
STYLES = {
    "batch norm": ("#0072B2", "s"),
    "group norm": ("#D55E00", "o"),
    "layer norm": ("#009E73", "^"),
    "instance norm": ("#CC79A7", "D"),
}


def draw(rows: list[Row], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    parts = defaultdict(list)
    for row in rows:
        parts[row["norm"]].append([float(row[name]) for name in ("batch_size", "error_percent", "standard_error")])
    figure, axes = pyplot.subplots(figsize=(7, 4.2), layout="constrained")
    for norm, (colour, marker) in STYLES.items():
        sizes, errors, deviations = zip(*sorted(parts[norm], reverse=True), strict=True)
        axes.errorbar(sizes, errors, deviations, label=norm, color=colour, marker=marker, capsize=3, linewidth=1.6)
    axes.set_xscale("log", base=2)
    axes.invert_xaxis()
    axes.set_xticks(sizes, [f"{size:g}" for size in sizes])
    axes.set_ylim(bottom=0)
    axes.set_xlabel("images in a batch")
    axes.set_ylabel("test error, percent")
    axes.grid(color="#dddddd", linewidth=0.7)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9)
    first = rows[0]
    axes.set_title(
        f"Handwritten digits, {first['training_samples']} images, {first['epochs']} epochs; mean and standard error\n"
        f"over {first['seeds']} seeds; {dates(rows)}",
        fontsize=10,
        loc="left",
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
