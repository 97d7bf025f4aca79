"""How long a fresh process takes to import numbagn and to give its first result."""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from numbagn.command.bench.cases import case_named
from numbagn.command.bench.results import provenance, write

from . import RESULTS

# A tiny array takes the serial kernel, a large one the parallel kernel: the two compile apart.
PATHS = {"serial": "pixel", "parallel": "diffusion-64"}
STEPS = ("import_numpy_s", "import_numba_s", "import_numbagn_s", "first_call_s", "first_result_s", "second_call_s")
COLUMNS = ("path", "shape", "G", "cache", *STEPS, "repeats")
DESCRIPTION = """\
Time fresh processes: the imports, the first call with an empty compilation cache, and the same in a second process,
which finds the compiled code in the cache. `first_result_s` is the import of numbagn and its first call together,
counted from when NumPy and Numba are imported. Serial kernel (tiny array) and parallel kernel (large array)."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--repeats", type=int, default=3, help="pairs of processes for each path, default 3")
    parser.add_argument("--output", type=Path, default=RESULTS / "cold_start.csv", help="CSV to write")


def main(options: argparse.Namespace) -> None:
    # Once without a clock: it writes the .pyc files, which an installed package has already.
    imported = subprocess.run([sys.executable, "-c", "import numbagn"], stderr=subprocess.PIPE, text=True)
    if imported.returncode:
        print(f"skipped numbagn: {imported.stderr.strip().splitlines()[-1]}", file=sys.stderr)
        return
    rows = []
    for path, case_name in PATHS.items():
        samples: dict[str, list[dict[str, float]]] = {"empty": [], "second process": []}
        for _ in range(options.repeats):
            with tempfile.TemporaryDirectory() as cache:
                for times in samples.values():
                    times.append(_fresh_process(case_name, cache))
                if not any(Path(cache).rglob("*.nbi")):
                    print(f"{path}: nothing cached in NUMBA_CACHE_DIR, both states may be the same", file=sys.stderr)
        rows += [_row(path, case_name, state, times) for state, times in samples.items()]
    write(options.output, COLUMNS, rows)
    print(f"wrote {options.output}", file=sys.stderr)


def _fresh_process(case_name: str, cache: str) -> dict[str, float]:
    case = case_named(case_name)
    # not by -m: Numba then takes half a second longer, which is nobody's usual way to start
    program = Path(__file__).with_name("first_call.py")
    command = [sys.executable, "-P", str(program), ",".join(map(str, case.shape)), str(case.groups)]
    environment = os.environ | {"NUMBA_CACHE_DIR": cache}
    environment.pop("NUMBAGN_CACHE", None)
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    times = json.loads(done.stdout)
    return times | {"first_result_s": times["import_numbagn_s"] + times["first_call_s"]}


def _row(path: str, case_name: str, state: str, times: list[dict[str, float]]) -> dict[str, Any]:
    case = case_named(case_name)
    row = {"path": path, "shape": "x".join(map(str, case.shape)), "G": case.groups, "cache": state}
    row |= {step: f"{median(sample[step] for sample in times):.4g}" for step in STEPS}
    print(f"{path}, cache {state}: first result after {row['first_result_s']} s", file=sys.stderr)
    return row | {"repeats": len(times)} | provenance()
