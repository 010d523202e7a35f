import urllib.request

import pytest
from fake_vllm import Engine, FakeServing
from processes import wait_until
from prometheus_client.parser import text_string_to_metric_families

ENGINE = Engine(alpha_ms=6.9, beta_ms=0.042, max_batch=64, gamma_ms=5.2, delta_ms=0.02)
PLACE = ("llm", "llama-8b")
TOKENS = {"input_tokens": 512, "output_tokens": 128}


def page(serving: FakeServing) -> dict[tuple[str, str], float]:
    """Series by name and pod, over all other labels."""
    # As Prometheus asks.
    request = urllib.request.Request(
        serving.url, headers={"Accept": "application/openmetrics-text;version=1.0.0"}
    )
    with urllib.request.urlopen(request, timeout=5.0) as answer:
        text = answer.read().decode()
    found: dict[tuple[str, str], float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if "le" not in sample.labels:
                key = (sample.name, sample.labels.get("pod", ""))
                found[key] = found.get(key, 0.0) + sample.value
    return found


def whole(serving: FakeServing) -> bool:
    totals = serving.totals(*PLACE)
    parts = (totals.completed, totals.given_up, totals.running, totals.waiting, totals.held)
    return totals.arrived == sum(parts)


def test_arrivals_are_the_rate_and_every_request_is_somewhere():
    with FakeServing(clock=None, patience_s=20.0) as serving:
        for rate_rps, pods, seconds in ((0.0, 0, 5), (7.0, 0, 9), (50.0, 1, 40), (50.0, 3, 31), (3.3, 2, 60)):
            before = serving.totals(*PLACE).arrived
            serving.set_pods(*PLACE, {f"p{n}": ENGINE for n in range(pods)})
            serving.set_rate(*PLACE, rate_rps, **TOKENS)
            serving.advance(seconds)
            assert whole(serving)
            assert serving.totals(*PLACE).arrived - before == pytest.approx(rate_rps * seconds, abs=1)


def test_an_overload_is_a_queue_that_grows_and_completions_at_capacity():
    capacity_rps = ENGINE.capacity_rps(512, 128)
    with FakeServing(clock=None) as serving:
        serving.set_pods(*PLACE, {"p": ENGINE})
        serving.set_rate(*PLACE, 2 * capacity_rps, **TOKENS)
        serving.advance(20)
        before = serving.totals(*PLACE)
        serving.advance(60)
        after = serving.totals(*PLACE)
    assert (after.completed - before.completed) / 60 == pytest.approx(capacity_rps, rel=0.02)
    assert (after.waiting - before.waiting) / 60 == pytest.approx(capacity_rps, rel=0.02)
    assert after.running == 64


def test_little_s_law_holds_below_capacity():
    with FakeServing(clock=None) as serving:
        serving.set_pods(*PLACE, {"p": ENGINE})
        serving.set_rate(*PLACE, 10.0, **TOKENS)
        serving.advance(20)
        before = page(serving)
        in_flight = 0.0
        for _ in range(1000):
            # Not a multiple of the time between arrivals, or all looks would come at the same point of it.
            serving.advance(0.07)
            in_flight += serving.totals(*PLACE).running / 1000
        after = page(serving)

    def rise(name: str) -> float:
        return after[name, "p"] - before[name, "p"]

    requests = rise("vllm:request_success_total")
    itl_s = rise("vllm:inter_token_latency_seconds_sum") / rise("vllm:inter_token_latency_seconds_count")
    ttft_s = rise("vllm:time_to_first_token_seconds_sum") / rise("vllm:time_to_first_token_seconds_count")
    assert requests == pytest.approx(700, rel=0.01)
    assert in_flight == pytest.approx(10.0 * (ttft_s + 127 * itl_s), rel=0.02)
    # The law at the batch that it has on average.
    assert itl_s == pytest.approx(ENGINE.itl_s(round(in_flight)), rel=0.02)
    assert ttft_s == pytest.approx(ENGINE.prefill_s(round(in_flight) + 1, 512), rel=0.05)
    assert rise("vllm:request_prompt_tokens_sum") / requests == 512
    assert rise("vllm:request_generation_tokens_sum") / requests == pytest.approx(128, rel=0.02)


def test_counters_of_a_new_pod_begin_at_0_and_vanish_with_it():
    with FakeServing(clock=None) as serving:
        serving.set_pods(*PLACE, {"a": ENGINE})
        serving.set_rate(*PLACE, 50.0, **TOKENS)
        serving.advance(30)
        assert serving.totals(*PLACE).waiting > 0
        assert page(serving)["vllm:request_success_total", "a"] > 0
        serving.set_pods(*PLACE, {"b": ENGINE})
        found = page(serving)
        assert whole(serving)
    assert found["vllm:request_success_total", "b"] == 0
    # What was in flight begins again.
    assert found["vllm:num_requests_running", "b"] > 0
    assert "a" not in {pod for _, pod in found}


def test_without_pods_requests_wait_at_the_gateway():
    with FakeServing(clock=None) as serving:
        serving.set_rate(*PLACE, 2.0, **TOKENS)
        serving.advance(10)
        assert page(serving)["inference_extension_flow_control_queue_size", ""] == 20
        serving.set_pods(*PLACE, {"a": ENGINE})
        assert page(serving)["inference_extension_flow_control_queue_size", ""] == 0
        assert serving.totals(*PLACE).running == 20


def test_who_waits_too_long_gives_up():
    with FakeServing(clock=None, patience_s=5.0) as serving:
        serving.set_pods(*PLACE, {"p": ENGINE})
        serving.set_rate(*PLACE, 100.0, **TOKENS)
        serving.advance(60)
        totals = serving.totals(*PLACE)
    assert totals.given_up > 0
    # Nobody waits longer than the patience, so the queue is no longer than what arrives in it.
    assert totals.waiting <= 501


def test_the_time_between_tokens_has_the_name_of_older_versions_too():
    with FakeServing(clock=None, old_names=True) as serving:
        serving.set_pods(*PLACE, {"p": ENGINE})
        serving.set_rate(*PLACE, 5.0)
        serving.advance(20)
        names = {name for name, _ in page(serving)}
    assert "vllm:time_per_output_token_seconds_sum" in names
    assert "vllm:inter_token_latency_seconds_sum" not in names


def test_the_simulation_keeps_up_with_a_clock_that_jumps_ahead():
    times_s = iter([0.0, 0.0, 1.0, 30.0])
    last_s = 30.0
    with FakeServing(clock=lambda: next(times_s, last_s)) as serving:
        serving.set_rate(*PLACE, 10.0)
        wait_until(lambda: serving.totals(*PLACE).arrived >= 290, "30 s have passed")
