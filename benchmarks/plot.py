"""Make the figure and the tables of the README from the result files."""

import argparse
import sys
from pathlib import Path

from numbagn._bench import figure
from numbagn._bench.results import read

from . import RESULTS, tables

DESCRIPTION = """\
Draw benchmarks/figures/speed.png and write the tables of speed and accuracy into README.md, between the markers
<!-- speed:begin --> / <!-- speed:end --> and <!-- accuracy:begin --> / <!-- accuracy:end -->.
A table whose markers are not there is printed instead. Nothing is measured."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    here = Path(__file__).parent
    parser.description, parser.formatter_class = DESCRIPTION, argparse.RawDescriptionHelpFormatter
    parser.add_argument("--speed", type=Path, default=RESULTS / "speed.csv", help="default: %(default)s")
    parser.add_argument("--accuracy", type=Path, default=RESULTS / "accuracy.csv", help="default: %(default)s")
    parser.add_argument("--figure", type=Path, default=here / "figures" / "speed.png", help="default: %(default)s")
    parser.add_argument("--readme", type=Path, default=here.parent / "README.md", help="default: %(default)s")


def main(options: argparse.Namespace) -> None:
    speed = _rows(options.speed)
    if speed:
        write_between(options.readme, "speed", tables.speed_tables(speed))
        try:
            figure.draw(speed, options.figure)
        except ImportError as error:
            print(f"no figure: {error}", file=sys.stderr)
        else:
            print(f"wrote {options.figure}", file=sys.stderr)
    accuracy = _rows(options.accuracy)
    if accuracy:
        write_between(options.readme, "accuracy", tables.accuracy_table(accuracy))


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


def _rows(path: Path) -> list[dict[str, str]]:
    rows = read(path)
    if not rows:
        print(f"nothing in {path}: `python -m benchmarks` makes it", file=sys.stderr)
    return rows
