"""What ptxas makes of every CUDA kernel: registers, spills, local memory, the width of loads and stores.

``python tests/gpu_budgets.py`` writes the table `tests/gpu_budgets.csv`; `test_gpu_budgets` compares. No GPU is needed,
only the packages of `pip install "numba-cuda[cu13]" nvidia-cuda-nvcc nvidia-cuda-nvdisasm`.
"""

import contextlib
import csv
import re
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from types import SimpleNamespace

TABLE = Path(__file__).with_suffix(".csv")
CAPABILITIES = ((7, 5), (8, 0), (8, 6), (9, 0), (10, 0))
COUNTS = {"float16": 8, "bfloat16": 8, "float32": 4, "float64": 2}
THREADS = 256


def tool(name):
    """The path of one of the toolkit's programs in this environment, or None."""
    found = sorted(Path(sysconfig.get_paths()["purelib"]).glob(f"nvidia/*/bin/{name}"))
    return str(found[-1]) if found else None


def why_not():
    """Why kernels cannot be compiled here; None where they can."""
    try:
        from numba import cuda
    except ImportError:
        return "numba.cuda is not installed"
    if getattr(cuda, "implementation", "") != "NVIDIA":
        return "numba-cuda is not installed"
    if not (tool("ptxas") and tool("nvdisasm")):
        return "the packages nvidia-cuda-nvcc and nvidia-cuda-nvdisasm are not installed"
    return None


def kernels():
    """(name, kernel) of each kernel in each dtype, in its largest form: parameters, SiLU and vectors."""
    from numbagn.calls.gpu.grids import channels_of, rows_of, whole_of
    from numbagn.kernels.cuda import backward, backward_split, forward, split
    from numbagn.kernels.cuda.copying import copy
    from numbagn.kernels.cuda.kinds import Kinds, Options, accumulator_of

    for kind, count in COUNTS.items():
        acc = accumulator_of(kind)
        wide = {"float32": 4, "float64": 8}[acc] * count > 16
        options = Options(Kinds(kind, weight=acc, bias=acc), "silu", count)
        both = options._replace(kinds=options.kinds._replace(dy=kind))
        for packed in (4, 128, 1024, 2048, 4096, 8192):
            w = whole_of(packed * count, count)
            if w is not None:
                yield f"forward whole {w.team}x{w.vectors}", kind, forward.whole(options, w)
        lanewise = options._replace(lanewise=True)
        yield "forward whole lanewise", kind, forward.whole(lanewise, (4, THREADS, THREADS))
        yield "forward sums first", kind, split.sums_first(options.of_sums(), 4, THREADS)
        yield "forward sums last", kind, split.sums_last(options.of_sums(), 32, THREADS)
        yield "forward apply first", kind, split.apply_first(options, 4, THREADS)
        yield "forward apply last", kind, split.apply_last(options, 32, 4, THREADS)
        for D, S in ((8, 32 * count), (8, 64 * count), (16, 128 * count)):
            held = channels_of(D, S, count, wide)
            if held is not None:
                yield f"backward whole {held.each}x{held.vectors}", kind, backward.whole(both, held, THREADS)
        for elements in (96 * count, 1024 * count):
            row = rows_of(elements, count, wide)
            if row is not None:
                yield f"backward rows {row.team}x{row.vectors}", kind, backward.rows(both, row)
        yield "backward sums first", kind, backward_split.sums_first(both, THREADS, THREADS)
        yield "backward sums last", kind, backward_split.sums_last(both, 32, THREADS)
        yield "backward apply first", kind, backward_split.apply_first(both, 4, THREADS)
        yield "backward apply last", kind, backward_split.apply_last(both, 32, 4, THREADS)
    for acc in ("float32", "float64"):
        yield "backward settle", acc, backward_split.settle(acc, acc, THREADS)
        yield "parameters", acc, backward.parameters(acc, acc, acc, THREADS)
    yield "forward settle", "float64", split.settle(THREADS)
    yield "copy", "float32", copy("float32", "float32", 4, THREADS)


def arguments_of(kernel):
    """Numbers for each of a kernel's arguments; there are no skip, residual and lengths."""
    from numbagn.kernels.cuda import operands

    operand, parameter, divisor = operands.Operand(0, 0, 0), operands.Parameter(0, 0, 0), operands.Divisor(0, 0, 0)
    known = {
        "arrays": operands.Arrays(x=operand, dy=operand, y=operand),
        "parameters": operands.Parameters(parameter, parameter),
        "lengths": None,
        "statistics": operands.Statistics(0, 0, 0),
        "partials": operands.Partials(0, 0),
        "slices": operands.Slices(divisor, 0, divisor),
        "sizes": operands.Sizes(0, 0, divisor, divisor, divisor, divisor),
        "merged": operands.Merged(0, divisor, 0, 0, 0),
        "walk": operands.Walk(0, 0),
        "columns": operands.Columns(0, 0, divisor, 0, 0),
        "gradients": operands.Gradients(0, 0, 0, 0),
        "source": operands.Strided(0, (0,) * 4),
        "target": operands.Strided(0, (0,) * 4),
        "shape": (0,) * 4,
        "eps": 0.0,
    }
    code = kernel.function.__code__
    return tuple(known.get(name, 0) for name in code.co_varnames[: code.co_argcount])


@contextlib.contextmanager
def pretending(capability):
    """Compile kernels that call device functions for a GPU that is not there."""
    from numba.cuda import dispatcher

    real = dispatcher.get_current_device
    dispatcher.get_current_device = lambda: SimpleNamespace(compute_capability=capability)
    try:
        yield
    finally:
        dispatcher.get_current_device = real


def ptx_of(kernel, capability):
    """The PTX of a kernel; new dispatchers each time, as those of device functions remember the capability."""
    from numba.cuda import compile_ptx, types

    from numbagn.kernels.cuda.target import form_of, launchable, numbers_of

    launchable.cache_clear()
    arguments = arguments_of(kernel)
    entry = launchable(kernel, form_of(arguments)).dispatcher.py_func
    numbers = [types.float64 if isinstance(number, float) else types.int64 for number in numbers_of(arguments)]
    with pretending(capability):
        ptx, _ = compile_ptx(entry, (types.BaseTuple.from_types(numbers),), cc=capability, launch_bounds=kernel.threads)
    return ptx


def assembled(ptx, capability):
    """What ptxas says of a kernel, and its machine code."""
    architecture = f"sm_{capability[0]}{capability[1]}"
    with tempfile.TemporaryDirectory() as folder:
        source, cubin = Path(folder) / "kernel.ptx", Path(folder) / "kernel.cubin"
        source.write_text(ptx)
        done = subprocess.run(
            [tool("ptxas"), "-v", "-O3", f"-arch={architecture}", source, "-o", cubin], capture_output=True, text=True
        )
        if done.returncode:
            raise RuntimeError(done.stderr)
        code = subprocess.run([tool("nvdisasm"), "-c", cubin], capture_output=True, text=True, check=True).stdout
    return done.stderr, code


def measured(kernel, capability):
    """The row of the table."""
    said, code = assembled(ptx_of(kernel, capability), capability)

    def count(pattern):
        return len(re.findall(pattern, code))

    def number(pattern):
        return sum(map(int, re.findall(pattern, said)))

    return {
        "registers": number(r"Used (\d+) registers"),
        "threads": kernel.threads,
        "spills": number(r"(\d+) bytes spill"),
        "stack": number(r"(\d+) bytes stack frame"),
        "local": count(r"\b(?:LDL|STL)\b"),
        "generic": count(r"\b(?:LD|ST)\.E"),
        "loads_128": count(r"\bLDG\.E(?:\.\w+)*\.128"),
        "stores_128": count(r"\bSTG\.E(?:\.\w+)*\.128"),
        "double": count(r"\b(?:DADD|DFMA|DMUL|DSETP)\b"),
    }  # fmt: skip


def rows(capabilities=CAPABILITIES):
    for capability in capabilities:
        for name, kind, kernel in kernels():
            row = {"capability": f"{capability[0]}.{capability[1]}", "kernel": name, "dtype": kind}
            yield row | measured(kernel, capability)


def main():
    table = []
    for row in rows():
        table.append(row)
        print(*row.values(), flush=True)
    with TABLE.open("w", newline="") as file:
        writer = csv.DictWriter(file, table[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(table)


if __name__ == "__main__":
    reason = why_not()
    if reason:
        sys.exit(reason)
    main()
