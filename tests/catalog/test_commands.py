from __future__ import annotations

import argparse
import csv
import json
import sys

import pytest

from solver import schema
from solver.catalog import expand_catalog
from solver.catalog_cli import add_parsers
from solver.errors import InputError


def run(*arguments):
    parser = argparse.ArgumentParser()
    add_parsers(parser.add_subparsers(required=True))
    args = parser.parse_args([str(argument) for argument in arguments])
    return args.command(args)


@pytest.fixture
def measurements(tmp_path):
    """8 + 0.05 n ms at one request a batch more, at three shapes."""
    path = tmp_path / "m.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["concurrency", "input_tokens", "output_tokens", "itl_ms", "ttft_ms"])
        for a, b in ((256, 256), (1024, 512), (2048, 128)):
            for n in (1, 4, 16, 64):
                d = (0.03 * a + 0.03 * b) / (1 + b)
                itl_ms = ((1 + b) * (8 + n * d) - (8 + (n - 1) * d) - 0.03 * a) / b
                writer.writerow([n, a, b, itl_ms, 8 + (n - 1) * d + 0.03 * a + itl_ms])
    return path


def test_fit_prints_the_law_its_errors_and_a_profile(measurements, capsys):
    assert run("fit", measurements, "--model", "llama", "--acc", "H100") == 0
    out = capsys.readouterr().out
    assert out.startswith("law 3, 12 points: mean error 0.0%")
    assert "standard error" in out
    profile = schema.ModelProfile.model_validate(json.loads(out.splitlines()[-1]))
    assert (profile.name, profile.acc, profile.law) == ("llama", "H100", 3)
    assert profile.perf_parms.alpha_ms == pytest.approx(8, rel=1e-4)
    assert profile.perf_parms.beta_ms == pytest.approx(0.03, rel=1e-4)


def test_fit_as_json_with_a_use_outside_the_range(measurements, tmp_path, capsys):
    entry = tmp_path / "profile.json"
    assert (
        run(
            "fit",
            measurements,
            "--output",
            "json",
            "--use-batch",
            128,
            "--use-out-tokens",
            300,
            "--write",
            entry,
        )
        == 0
    )
    answer = json.loads(capsys.readouterr().out)
    assert answer["profile"] == json.loads(entry.read_text())
    assert answer["fit"]["warnings"] == ["batch 128 is outside the measured range 1 to 64"]
    assert answer["fit"]["parameters"]["gamma"] == pytest.approx(0, abs=1e-6)
    assert set(answer["fit"]["concurrency"]) == {"low", "high"}


def test_fit_with_a_data_sheet_and_experts(measurements, capsys):
    sheet = ("--gpu", "h100_sxm", "--kv-bytes", 131_072, "--active-parameters", 8e9, "--fp8")
    assert run("fit", measurements, "--experts", "8/256", "--output", "json", *sheet) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["fit"]["parameters"]["expertFraction"] == 8 / 256
    with pytest.raises(InputError, match="come together"):
        run("fit", measurements, "--gpu", "h100_sxm")
    with pytest.raises(InputError, match="did you mean 'h100_sxm'"):
        run("fit", measurements, "--gpu", "h100", "--kv-bytes", 1, "--active-parameters", 1)
    with pytest.raises(InputError, match="two numbers such as 8/256"):
        run("fit", measurements, "--experts", "8/0")


def test_fit_of_bad_files_is_bad_input(tmp_path):
    with pytest.raises(InputError, match="a file that can be read"):
        run("fit", tmp_path / "nothing.csv")
    (tmp_path / "bad.csv").write_text("batch,isl,osl,itl_ms\n1,100,100,0.01\n2,100,100,0.02\n")
    with pytest.raises(InputError, match="in seconds"):
        run("fit", tmp_path / "bad.csv")
    (tmp_path / "bytes.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="UTF-8"):
        run("fit", tmp_path / "bytes.csv")


@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_fit_draws(measurements, tmp_path, suffix):
    pytest.importorskip("matplotlib", reason="an extra")
    picture = tmp_path / f"fit{suffix}"
    assert run("fit", measurements, "--plot", picture) == 0
    start = picture.read_bytes()[:2000]
    assert start.startswith(b"\x89PNG") if suffix == ".png" else b"<svg" in start


def test_fit_refuses_an_unknown_picture_format(measurements, tmp_path):
    pytest.importorskip("matplotlib", reason="an extra")
    with pytest.raises(InputError, match="a picture"):
        run("fit", measurements, "--plot", tmp_path / "fit.docx")


def test_fit_without_matplotlib_says_what_to_install(measurements, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(InputError, match=r"pip install 'fleetopt\[fit\]'"):
        run("fit", measurements, "--plot", tmp_path / "fit.png")


def test_catalog_lists_and_filters(capsys):
    assert (
        run(
            "catalog", "--model", "70b", "--gpu", "h100", "--engine", "vllm", "--cards", 4, "--output", "json"
        )
        == 0
    )
    rows = json.loads(capsys.readouterr().out)
    assert [row["id"] for row in rows] == ["llama-3.1-70b/h100_sxm/vllm/fp8/tp4/unversioned"]
    assert rows[0]["epsilon_ms"] is None
    assert run("catalog", "--gpu", "b300") == 0
    table = capsys.readouterr().out
    assert "b300_sxm/sglang" in table
    assert "h100_sxm" not in table
    assert "Apache-2.0" in table


def test_catalog_of_prices_and_gpus(capsys):
    assert run("catalog", "prices", "--cloud", "nebius", "--gpu", "h100", "--output", "json") == 0
    assert {row["spot_usd_per_gpu_h"] for row in json.loads(capsys.readouterr().out)} == {1.25}
    assert run("catalog", "gpus") == 0
    assert "h200_sxm" in capsys.readouterr().out
    assert run("catalog", "prices", "--cloud", "nobody") == 0


NEW = ("system", "new", "--model", "llama-3.1-70b", "--rate", 600, "--ttft", 2000, "--itl", 40)


def test_system_new_writes_references_that_expand_to_a_system(tmp_path, capsys):
    path = tmp_path / "system.json"
    assert run(*NEW, "--gpu", "h100_sxm", "--gpu", "h200_sxm", "--count", 16, "--write", path) == 0
    assert "price of h100_sxm at aws" in capsys.readouterr().err
    document = json.loads(path.read_text())
    accelerators = document["system"]["acceleratorData"]["accelerators"]
    assert [unit["name"] for unit in accelerators] == [
        f"{gpu}-x{cards}"
        for gpu, all_cards in (("h100_sxm", (2, 4, 8)), ("h200_sxm", (1, 2, 4, 8)))
        for cards in all_cards
    ]
    system = schema.parse_system(expand_catalog(document)[0]).system
    assert {profile.law for profile in system.model_data.models} == {3}
    assert {count.type: count.count for count in system.capacity_data.count} == {
        "h100_sxm": 16,
        "h200_sxm": 16,
    }
    assert all(unit.cost_cents_per_h > 0 for unit in system.accelerator_data.accelerators)


def test_system_new_without_a_gpu_takes_all_that_the_cloud_rents(capsys):
    assert run(*NEW, "--expand") == 0
    system = json.loads(capsys.readouterr().out)["system"]
    assert {unit["type"] for unit in system["acceleratorData"]["accelerators"]} == {
        "b200_sxm",
        "h100_sxm",
        "h200_sxm",
    }
    assert all("perfParms" in profile for profile in system["modelData"]["models"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("--model", "llama-3.1-71b"), "did you mean 'llama-3.1-70b'"),
        (("--gpu", "h100"), "did you mean 'h100_sxm'"),
        (("--gpu", "l4"), "that llama-3.1-70b was measured on"),
        (("--precision", "fp6"), "that llama-3.1-70b was measured on"),
        (("--gpu", "h100_sxm", "--cloud", "gcp"), "a cloud and region with a price of h100_sxm"),
    ],
)
def test_system_new_says_what_there_is(change, message):
    with pytest.raises(InputError, match=message):
        run(*NEW, *change)


def test_numbers_of_the_wrong_kind_are_refused(capsys):
    for option in (("--rate", "-1"), ("--itl", "nan"), ("--count", "0")):
        with pytest.raises(SystemExit):
            run(*NEW, *option)
        assert "must be" in capsys.readouterr().err


def test_a_listing_without_a_match_says_so(capsys):
    assert run("catalog", "prices", "--gpu", "abacus") == 0
    assert capsys.readouterr().out == "none of the prices matches\n"


def test_a_cloud_without_a_price_is_named():
    with pytest.raises(InputError, match=r"--cloud: a cloud with a spot price of one of .*h100_sxm.*azure"):
        run("system", "new", "--model", "llama-3.1-70b", "--rate", "9", "--ttft", "900", "--itl", "50",
            "--cloud", "azure", "--spot")  # fmt: skip
