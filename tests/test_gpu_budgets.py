"""The machine code of the CUDA kernels keeps to its budget: no GPU needed, the toolkit's packages are."""

import csv
import os

import gpu_budgets
import pytest

LAUNCHABLE = 65536  # registers of a multiprocessor


def committed():
    with gpu_budgets.TABLE.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("capability", ["7.5", "8.0", "8.6", "9.0", "10.0"])
def test_the_committed_table_is_within_the_budget(capability):
    rows = [row for row in committed() if row["capability"] == capability]
    assert {row["dtype"] for row in rows} == {"float16", "bfloat16", "float32", "float64"}
    assert len(rows) > 60
    for row in rows:
        text = " ".join(row.values())
        registers, threads = int(row["registers"]), int(row["threads"])
        assert -(-registers // 8) * 8 * threads <= LAUNCHABLE, text
        assert row["generic"] == "0", text
        most = 0 if row["dtype"] == "float32" else 16  # bytes, in two of the kernels of other dtypes
        assert int(row["spills"]) <= most, text
        assert int(row["stack"]) <= most, text
        assert int(row["local"]) <= most // 4, text
        if row["kernel"].startswith("forward whole"):
            vectors = int(row["kernel"].rpartition("x")[2]) if "x" in row["kernel"] else 4
            assert int(row["loads_128"]) >= vectors, text
            assert int(row["stores_128"]) >= vectors, text
        elif row["kernel"].startswith(("forward apply", "backward apply", "backward whole", "backward rows")):
            assert int(row["loads_128"]) >= 1, text
            assert int(row["stores_128"]) >= 1, text
        elif "sums" in row["kernel"]:
            assert int(row["loads_128"]) >= 1, text


def test_kernels_compile_to_what_the_table_says():
    reason = gpu_budgets.why_not()
    if reason:
        pytest.skip(reason)
    if os.environ.get("NUMBA_ENABLE_CUDASIM") == "1":
        pytest.skip("the simulator compiles nothing")
    table = {(row["capability"], row["kernel"], row["dtype"]): row for row in committed()}
    for name, kind, kernel in gpu_budgets.kernels():
        if kind != "float32":  # the others when the table is made: two seconds a kernel
            continue
        row, got = table["9.0", name, kind], gpu_budgets.measured(kernel, (9, 0))
        for column in ("spills", "local", "generic", "loads_128", "stores_128"):
            assert got[column] == int(row[column]), (name, column)
        assert abs(got["registers"] - int(row["registers"])) <= 8, name  # other releases of the toolkit differ a little
