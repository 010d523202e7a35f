from dataclasses import replace
from pathlib import Path

import highspy
import pytest
from backends.programs import INF, knapsack, program

from solver.backends import get, write_model
from solver.errors import InputError
from solver.milp import Milp, SolveOptions

pytest.importorskip("pyomo")

# Every kind of row and column, and names that no file format takes.
KINDS = program(
    [3.0, -2.0, 1.5, 0.0, 0.0],
    [
        ({0: 1.0, 1: 2.0}, -INF, 9.5),
        ({0: 1.0, 2: -1.0}, -4.0, 6.0),
        ({1: 1.0, 2: 1.0, 3: 1.0}, 5.0, 5.0),
        ({0: 1.0}, -3.5, INF),
        ({}, -1.0, 1.0),
        ({2: 1.0, 3: 0.25}, -INF, INF),
    ],
    lower=[-INF, 0.0, -2.0, 0.0, 1.0],
    upper=[INF, 7.0, 8.5, 4.0, 1.0],
    integer=[True, True, False, True, False],
    offset=12.25,
    column_names=("llama 70b @ H100", "llama_70b___H100", "größe", "9e9", "end"),
    row_names=("demand[a]", "demand(a)", "", "x", "free", "st"),
)


def read_back(path: Path) -> highspy.Highs:
    highs = highspy.Highs()
    highs.setOptionValue("output_flag", False)
    highs.setOptionValue("mip_rel_gap", 0.0)
    # HiGHS warns that Pyomo writes the missing bounds of an integer column as 1e21.
    assert highs.readModel(str(path)) != highspy.HighsStatus.kError
    return highs


@pytest.mark.parametrize("suffix", [".lp", ".mps"])
@pytest.mark.parametrize(
    "milp",
    [KINDS, knapsack(1.0), knapsack(-1.0), replace(KINDS, column_names=(), row_names=())],
    ids=["kinds", "cover", "pack", "nameless"],
)
def test_written_model_has_the_same_optimum(milp: Milp, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"model{suffix}"
    write_model(milp, path)
    highs = read_back(path)
    highs.run()
    assert highs.getModelStatus() == highspy.HighsModelStatus.kOptimal
    expected = get("highs").solve(milp, SolveOptions(relative_gap=0.0)).objective
    assert highs.getInfo().objective_function_value == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("suffix", [".lp", ".mps"])
def test_names_survive_as_far_as_the_format_takes_them(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"model{suffix}"
    write_model(KINDS, path)
    text = path.read_text(encoding="ascii")
    for name in (
        "x(llama_70b___H100)",
        "x(llama_70b___H100_2)",
        "x(gr__e)",
        "upper(demand_a_)",
        "lower(demand_a__2)",
    ):
        assert name in text
    lp = read_back(path).getLp()
    assert len(set(lp.col_names_)) == lp.num_col_


def test_unknown_suffix_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"\.lp or \.mps"):
        write_model(KINDS, tmp_path / "model.txt")
    assert not list(tmp_path.iterdir())
