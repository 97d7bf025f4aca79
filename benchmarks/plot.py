"""Make the figures and the tables of the README from the result files."""

import argparse
import sys
from pathlib import Path

from numbagn.command.bench import figure
from numbagn.command.bench.results import read

from . import FIGURES, RESULTS, batch_figure, support_table, tables

ROOT = Path(__file__).parents[1]
# name of the CSV and of the markers in the README: the table, and what draws the figure of that name
PAGES = {
    "speed": (tables.speed_tables, figure.draw),
    "accuracy": (tables.accuracy_table, None),
    "padded": (tables.padded_table, None),
    "cold_start": (tables.cold_start_table, None),
    "pipeline": (tables.pipeline_table, None),
    "batch_size": (tables.batch_size_table, batch_figure.draw),
}
DESCRIPTION = f"""\
Draw benchmarks/figures/*.png and write the tables into README.md, between markers as
<!-- speed:begin --> / <!-- speed:end -->: {", ".join(PAGES)}, each from the CSV of its name, and support, from
what the library takes.
A table whose markers are not there is printed instead. Nothing is measured."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of CSVs, default %(default)s")
    parser.add_argument("--figures", type=Path, default=FIGURES, help="folder of figures, default %(default)s")
    parser.add_argument("--readme", type=Path, default=ROOT / "README.md", help="default %(default)s")


def main(options: argparse.Namespace) -> None:
    write_between(options.readme, "support", support_table.table())
    for name, (table, draw) in PAGES.items():
        path = options.results / f"{name}.csv"
        rows = read(path)
        if not rows:
            print(f"nothing in {path}: `python -m benchmarks` makes it", file=sys.stderr)
            continue
        write_between(options.readme, name, table(rows))
        if draw is None:
            continue
        try:
            draw(rows, options.figures / f"{name}.png")
        except ImportError as error:
            print(f"no figure: {error}", file=sys.stderr)
        else:
            print(f"wrote {options.figures / name}.png", file=sys.stderr)


def write_between(readme: Path, name: str, text: str) -> None:
    """Replace what stands between the two markers, or print the text where there are none."""
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    page = readme.read_text(encoding="utf-8") if readme.exists() else ""
    head, found_begin, rest = page.partition(begin)
    _, found_end, tail = rest.partition(end)
    if not (found_begin and found_end):
        print(text)
        return
    readme.write_text(f"{head}{begin}\n{text}\n{end}{tail}", encoding="utf-8")
    print(f"wrote the table of {name} into {readme}", file=sys.stderr)
