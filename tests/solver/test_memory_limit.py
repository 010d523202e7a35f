"""The KV cache limits the batch."""

from __future__ import annotations

from solver.analyze import analyze
from solver.optimize import RequestOptions, optimize
from solver.schema import parse_system
from solver.sizing import size_fleet


def parsed(**profile):
    return parse_system(
        {
            "acceleratorData": {"accelerators": [{"name": "H100", "cost": 100, "memSize": 80}]},
            "modelData": {
                "models": [
                    {
                        "name": "llama-8b",
                        "acc": "H100",
                        "maxBatchSize": 512,
                        "perfParms": {"alpha": 6, "beta": 0.02, "gamma": 4e-5},
                        "weightSize": 16.06,
                        "kvBytesPerToken": 131_072,
                    }
                    | profile
                ]
            },
            "serverData": {
                "servers": [
                    {
                        "name": "s",
                        "class": "c",
                        "model": "llama-8b",
                        "currentAlloc": {
                            "load": {"arrivalRate": 60, "avgInTokens": 1500, "avgOutTokens": 548}
                        },
                    }
                ]
            },
            "serviceClassData": {"serviceClasses": [{"name": "c"}]},
            "optimizerData": {"optimizer": {"unlimited": True}},
        }
    )


def fleet(**profile):
    return size_fleet(parsed(**profile).system)


def test_the_cache_sets_the_batch_limit():
    # 0.9 x 80 GB less the weights, 131,072 bytes for each of 2,048 tokens.
    found = fleet()
    assert found.candidates.max_batch.tolist() == [208]
    assert found.memory_limited.tolist() == [True]


def test_a_lower_limit_stays():
    found = fleet(maxBatchSize=100)
    assert found.candidates.max_batch.tolist() == [100]
    assert found.memory_limited.tolist() == [False]


def test_two_cards_hold_more_than_twice_as_many():
    assert fleet(accCount=2, maxBatchSize=2000).candidates.max_batch.tolist() == [476]


def test_weights_that_do_not_fit_are_no_option():
    found = fleet(weightSize=141)
    assert found.options.tolist() == []


def test_without_the_bytes_of_a_token_there_is_no_limit():
    found = fleet(kvBytesPerToken=0)
    assert found.candidates.max_batch.tolist() == [512]
    assert found.memory_limited.tolist() == [False]


def test_unknown_weights_take_no_room():
    assert fleet(weightSize=0).candidates.max_batch.tolist() == [268]


def test_the_report_says_where_memory_limits():
    report = optimize(parsed(), RequestOptions()).report
    assert report.warnings[-1] == "s on H100: the KV cache limits the batch to 208"
    assert not any(
        "KV cache" in w for w in optimize(parsed(maxBatchSize=100), RequestOptions()).report.warnings
    )


def test_weights_that_do_not_fit_are_the_reason_that_is_given():
    (short,) = optimize(parsed(weightSize=141), RequestOptions()).report.unserved
    assert short.reason == "targets"
    assert short.detail == "H100: its memory does not hold the weights and one request of 2048 tokens"
    (candidate,) = analyze(parsed(weightSize=141)).candidates
    assert not candidate.feasible
