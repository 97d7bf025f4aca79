"""The figure of the batch-size experiment: test error by batch size, one line a norm."""

from pathlib import Path

from numbagn.command.bench.groups import Row, dates

from .tables import errors_by_point, mean_and_error

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

    figure, axes = pyplot.subplots(figsize=(7, 4.2), layout="constrained")
    for norm, by_size in errors_by_point(rows).items():
        means, deviations = zip(*map(mean_and_error, by_size.values()), strict=True)
        colour, marker = STYLES[norm]
        axes.errorbar(
            list(by_size), means, deviations, label=norm, color=colour, marker=marker, capsize=3, linewidth=1.6
        )
    sizes, seeds = list(by_size), len(next(iter(by_size.values())))
    axes.set_xscale("log", base=2)
    axes.invert_xaxis()
    axes.set_xticks(sizes, sizes)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("images in a batch")
    axes.set_ylabel("test error, percent")
    axes.grid(color="#dddddd", linewidth=0.7)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9)
    first = rows[0]
    axes.set_title(
        f"Handwritten digits, {first['training_samples']} images, {first['epochs']} epochs; mean and standard error\n"
        f"over {seeds} seeds; {dates(rows)}",
        fontsize=10,
        loc="left",
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
