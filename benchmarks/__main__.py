"""Command line of the benchmarks: `python -m benchmarks --help`."""

import argparse
import sys

from . import accuracy, batch_size, cold_start, gpu, padded, pipeline, plot, run

DESCRIPTION = """\
Remake every figure that the project states of itself: speed, accuracy and start-up time.

  python -m benchmarks               everything: the commands below, one after the other
  python -m benchmarks run           speed beside a copy and beside other libraries  -> results/speed.csv
  python -m benchmarks accuracy      error against float64 at large offsets          -> results/accuracy.csv
  python -m benchmarks padded        what lengths and masks cost                     -> results/padded.csv
  python -m benchmarks cold-start    time of import and of the first result          -> results/cold_start.csv
  python -m benchmarks pipeline      a residual block with three norms to choose from -> results/pipeline.csv
  python -m benchmarks batch-size    test error of small networks by batch size      -> results/batch_size.csv
  python -m benchmarks gpu           speed on a GPU, where there is one               -> results/gpu.csv
  python -m benchmarks plot          figures, and the tables in README.md, from those files

Each command has its own --help. Peers are optional: torch, onnx + onnxruntime, openvino, jax; those not installed are
skipped with a line. For steady figures leave the machine alone meanwhile."""

COMMANDS = {
    "run": run,
    "accuracy": accuracy,
    "padded": padded,
    "cold-start": cold_start,
    "pipeline": pipeline,
    "batch-size": batch_size,
    "gpu": gpu,
    "plot": plot,
}


def main(arguments: list[str]) -> None:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("python -m benchmarks", description=DESCRIPTION, formatter_class=formatter)
    commands = parser.add_subparsers(dest="command", metavar="[" + " | ".join(COMMANDS) + "]")
    for name, module in COMMANDS.items():
        module.add_arguments(commands.add_parser(name, description=module.DESCRIPTION, formatter_class=formatter))
    options = parser.parse_args(arguments)
    if options.command:
        COMMANDS[options.command].main(options)
        return
    for name, module in COMMANDS.items():
        if module is gpu and gpu.why_not():
            print(f"python -m benchmarks gpu: left out, {gpu.why_not()}", file=sys.stderr)
            continue
        module.main(parser.parse_args([name]))


if __name__ == "__main__":
    main(sys.argv[1:])
