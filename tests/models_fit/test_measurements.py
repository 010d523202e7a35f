from __future__ import annotations

import json

import numpy as np
import pytest

from models.measurements import MeasurementError, check, from_rows, read

GOOD = {"in_tokens": 1024.0, "out_tokens": 128.0, "itl_ms": 20.0, "ttft_ms": 100.0}


def points(*changes, **common):
    return from_rows({**GOOD, "concurrency": 2.0**i, **common, **change} for i, change in enumerate(changes))


def write(path, text):
    path.write_text(text if isinstance(text, str) else json.dumps(text), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    "header",
    [
        "concurrency,input_tokens,output_tokens,itl_ms,ttft_ms",
        "batch,isl,osl,tpot_ms,ttft_ms",
        " Max_Concurrency , ISL ,out_tokens,ITL_ms,TTFT_ms",
    ],
)
def test_csv_columns_have_several_names(tmp_path, header):
    found = read(
        [write(tmp_path / "m.csv", f"\ufeff{header},gpu\n8,1024,128,20.5,95,h100\n16,1024,128,24,,h100\n")]
    )
    assert found.concurrency.tolist() == [8, 16]
    assert found.itl_ms.tolist() == [20.5, 24]
    assert found.ttft_ms[0] == 95
    assert np.isnan(found.ttft_ms[1])
    assert not found.together.any()


def test_csv_of_batches_that_start_together(tmp_path):
    text = "batch,isl,osl,itl_ms,together\n8,1024,128,20,1\n8,1024,128,20,0\n"
    assert read([write(tmp_path / "m.csv", text)]).together.tolist() == [True, False]


def test_csv_without_a_column_names_it(tmp_path):
    with pytest.raises(
        MeasurementError, match="no column itl_ms or tpot_ms; the columns are batch, isl, osl, itl_s"
    ):
        read([write(tmp_path / "m.csv", "batch,isl,osl,itl_s\n1,2,3,4\n")])


def test_csv_with_a_word_for_a_number_names_the_cell(tmp_path):
    with pytest.raises(MeasurementError, match="line 3, column osl: 'many' is no number"):
        read([write(tmp_path / "m.csv", "batch,isl,osl,itl_ms\n1,2,3,4\n1,2,many,4\n")])


def test_empty_file(tmp_path):
    with pytest.raises(MeasurementError, match=r"m\.csv: no measurement in it"):
        read([write(tmp_path / "m.csv", "batch,isl,osl,itl_ms\n")])
    for name in ("m.csv", "m.json"):
        with pytest.raises(MeasurementError, match=f"{name}: the file is empty"):
            read([write(tmp_path / name, " \n")])


def guidellm(concurrency, itl_ms):
    def metric(mean):
        return {"successful": {"mean": mean, "median": mean}, "errored": None}

    return {
        "config": {"strategy": {"type_": "concurrent", "streams": concurrency}},
        "metrics": {
            "request_concurrency": metric(concurrency),
            "prompt_token_count": metric(1024),
            "output_token_count": metric(128),
            "inter_token_latency_ms": metric(itl_ms),
            "time_to_first_token_ms": metric(100),
            "request_latency": metric(2.64),
        },
    }


def test_guidellm_report(tmp_path):
    report = {"metadata": {"version": 1}, "benchmarks": [guidellm(3.9, 20), guidellm(7.8, 22)]}
    found = read([write(tmp_path / "benchmarks.json", report)])
    assert found.concurrency.tolist() == [3.9, 7.8]
    assert found.itl_ms.tolist() == [20, 22]
    assert found.in_tokens.tolist() == [1024, 1024]
    assert found.ttft_ms.tolist() == [100, 100]
    assert found.e2e_ms.tolist() == [2640, 2640]


def test_guidellm_benchmark_in_which_nothing_was_completed(tmp_path):
    empty = guidellm(4, 20)
    for metric in empty["metrics"].values():
        metric["successful"]["mean"] = 0.0
    with pytest.raises(MeasurementError, match=r"benchmarks\.json: no request of a benchmark was completed"):
        read([write(tmp_path / "benchmarks.json", {"benchmarks": [empty]})])


def test_guidellm_report_without_a_metric_names_it(tmp_path):
    broken = guidellm(4, 20)
    broken["metrics"]["inter_token_latency_ms"] = {"successful": None}
    with pytest.raises(MeasurementError, match=r"no metrics\.inter_token_latency_ms\.successful\.mean"):
        read([write(tmp_path / "benchmarks.json", {"benchmarks": [broken]})])


def vllm(**changes):
    return {
        "model_id": "m",
        "request_rate": "inf",
        "max_concurrency": 16,
        "duration": 60.0,
        "completed": 200,
        "total_input_tokens": 204_800,
        "total_output_tokens": 25_600,
        "mean_ttft_ms": 100.0,
        "mean_tpot_ms": 20.0,
        "mean_itl_ms": 19.0,
    } | changes


def test_vllm_result(tmp_path):
    found = read([write(tmp_path / "a.json", vllm()), write(tmp_path / "b.json", vllm(max_concurrency=32))])
    assert found.concurrency.tolist() == [16, 32]
    assert found.in_tokens.tolist() == [1024, 1024]
    assert found.out_tokens.tolist() == [128, 128]
    assert found.itl_ms.tolist() == [20, 20]


def test_vllm_result_without_a_limit_of_concurrency_has_that_of_littles_law(tmp_path):
    found = read([write(tmp_path / "a.json", vllm(max_concurrency=None))])
    # 200 requests of 100 ms + 127 x 20 ms in 60 s.
    assert found.concurrency[0] == pytest.approx(200 * 2.64 / 60)


@pytest.mark.parametrize(
    ("change", "concurrency"),
    [
        ({"request_rate": 3.0}, 200 * 2.64 / 60),  # a rate at which the limit is not reached
        ({"request_rate": 3.0, "duration": 20.0}, 16.0),  # and one at which it is
        ({"max_concurrency": 512}, 200 * 2.64 / 60),  # more than there are requests
        ({"request_rate": None}, 16.0),
    ],
)
def test_vllm_result_whose_limit_of_concurrency_was_not_reached(tmp_path, change, concurrency):
    found = read([write(tmp_path / "a.json", vllm(**change))])
    assert found.concurrency[0] == pytest.approx(concurrency)


def test_vllm_results_as_json_lines(tmp_path):
    lines = "\n".join(json.dumps(vllm(max_concurrency=n)) for n in (1, 2, 4))
    assert read([write(tmp_path / "all.jsonl", lines)]).concurrency.tolist() == [1, 2, 4]


@pytest.mark.parametrize(
    ("text", "message"), [("{}", "neither a guidellm"), ("nothing", "neither JSON"), ("[1]", "object")]
)
def test_unknown_json(tmp_path, text, message):
    with pytest.raises(MeasurementError, match=message):
        read([write(tmp_path / "x.json", text)])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"itl_ms": -3.0}, "itl_ms of point 2 is -3: expected a number above 0"),
        ({"itl_ms": 0.0}, "itl_ms of point 2 is 0"),
        ({"itl_ms": float("nan")}, "itl_ms of point 2 is nan"),
        ({"ttft_ms": -1.0}, "ttft_ms of point 2 is -1"),
        ({"concurrency": 0.5}, "concurrency of point 2 is 0.5: expected a number at least 1"),
        ({"out_tokens": 0.0}, "output_tokens of point 2 is 0: expected a number at least 1"),
    ],
)
def test_impossible_numbers_are_refused(change, message):
    with pytest.raises(MeasurementError, match=message):
        check(points({}, change, {}))


@pytest.mark.parametrize(
    ("common", "message"),
    [
        ({"itl_ms": 0.02, "ttft_ms": 0.1}, "in seconds"),
        ({"itl_ms": 20_000.0, "ttft_ms": 1e5}, "in microseconds, or of whole requests"),
        ({"ttft_ms": 0.1}, "TTFT is less than half an iteration"),
        ({"e2e_ms": 100.0 + 127 * 10.0}, "ITL is counted twice"),
        ({"e2e_ms": 2.64}, "end-to-end time is less than the TTFT in most points: is it in seconds"),
        ({"itl_ms": 2640.0 / 128, "e2e_ms": 2640.0}, "end-to-end time over the output tokens"),
    ],
)
def test_mixed_up_units_are_refused(common, message):
    with pytest.raises(MeasurementError, match=message):
        check(points({}, {}, {}, **common))


@pytest.mark.parametrize("itl_ms", [0.02, 20_000.0])
def test_a_single_point_of_another_unit_is_refused(itl_ms):
    with pytest.raises(
        MeasurementError, match=r"ITL of point 2 is \d+.* ms, the median 20 ms: are the units mixed"
    ):
        check(points({}, {"itl_ms": itl_ms}, {}))


def test_a_ttft_below_an_iteration_is_said_of_requests_that_are_alone():
    _, warnings = check(points({"ttft_ms": 12.0}, {}, {}))
    assert warnings == [
        "the TTFT of a request that is alone is less than the time between two of its tokens: is the ITL "
        "counted twice?"
    ]
    assert check(points({}, {}, {}))[1] == []


def test_an_end_to_end_time_that_does_not_add_up_is_said():
    agreeing, warnings = check(points({}, {}, e2e_ms=100.0 + 127 * 20.0))
    assert warnings == []
    _, warnings = check(points({}, {}, e2e_ms=100.0 + 127 * 26.0))
    assert warnings == [
        "the end-to-end time less the TTFT is 1.30 times (output tokens - 1) x ITL: they should agree"
    ]
    assert len(agreeing) == 2


def test_points_that_queued_outside_the_batch_are_left_out():
    kept, warnings = check(points({}, {}, {"ttft_ms": 5000.0}))
    assert kept.concurrency.tolist() == [1, 2]
    assert warnings[0].startswith("1 of 3 points left out")
    # A batch that starts together has no queue: its prefill may take most of the time.
    kept, warnings = check(points({}, {}, {"ttft_ms": 5000.0}, together=1.0))
    assert len(kept) == 3
    assert warnings == []
    # Nor has a request that is alone.
    kept, warnings = check(points({"ttft_ms": 5000.0}, {}, {}))
    assert (len(kept), warnings) == (3, [])


def test_a_falling_itl_is_said():
    _, warnings = check(points({}, {"itl_ms": 15.0}, {"itl_ms": 25.0}))
    assert warnings == ["the ITL falls by more than 10% where the batch grows, in 1 request shapes"]


def test_nothing_measured():
    with pytest.raises(MeasurementError, match="no measurement"):
        check(from_rows([]))
