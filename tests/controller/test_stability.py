"""The limits on change; time is an argument."""

from hypothesis import given
from hypothesis import strategies as st

from controller.crd import VariantKey
from controller.stability import Limits, Recommendation, Steadied, Surplus, released, remembered, steadied


def run(
    wanted: list[int],
    limits: Limits,
    start: int,
    interval_s: float = 60.0,
    delays: dict[int, float] | None = None,
) -> list[int]:
    """Replicas after each pass, when every pass is followed at once."""
    history: tuple[Recommendation, ...] = ()
    current, now_s, seen = start, 1000.0, []
    for index, replicas in enumerate(wanted):
        now_s += (delays or {}).get(index, interval_s)
        history = remembered(history, current, replicas, now_s, limits.window_s)
        current = steadied(current, history, limits).replicas
        seen.append(current)
    return seen


def test_up_at_once_down_after_the_window() -> None:
    # 5 was the recommendation until the second pass, and that is 300 s ago in the seventh.
    assert run([5, 2, 2, 2, 2, 2, 2, 2], Limits(window_s=300), 1) == [5, 5, 5, 5, 5, 5, 2, 2]


def test_down_to_the_highest_of_the_window_only() -> None:
    assert run([4, 1, 3, 1, 1, 1, 1, 1, 1], Limits(window_s=180), 4) == [4, 4, 4, 4, 3, 3, 1, 1, 1]


def test_a_new_controller_takes_nothing_away_for_a_window() -> None:
    assert run([1, 1, 1, 1, 1, 1, 1], Limits(window_s=300), 6) == [6, 6, 6, 6, 6, 1, 1]


def test_after_an_outage_nothing_goes_at_once() -> None:
    seen = run([6, 1, 1, 1, 1, 1, 1, 1], Limits(window_s=300), 6, delays={1: 3600.0})
    assert seen[:6] == [6] * 6
    assert seen[-1] == 1


def test_window_of_zero_goes_down_at_once() -> None:
    assert run([1], Limits(window_s=0), 6) == [1]


def test_window_shorter_than_the_interval_ends() -> None:
    assert run([1, 1, 1], Limits(window_s=30), 6) == [6, 1, 1]


def test_step_limits_both_ways() -> None:
    limits = Limits(window_s=0, max_step_up=2, max_step_down=1)
    assert run([8, 8, 8, 8, 1, 1], limits, 1) == [3, 5, 7, 8, 7, 6]


def test_small_gain_is_no_reason_to_go_down() -> None:
    limits = Limits(window_s=0, min_gain=0.1)
    assert run([19, 18], limits, 20) == [20, 18]


def test_up_is_never_held_by_the_gain() -> None:
    assert steadied(20, (Recommendation(0.0, 21),), Limits(min_gain=1.0)) == Steadied(21)


def test_reasons_are_in_words() -> None:
    history = (Recommendation(0.0, 5), Recommendation(60.0, 2))
    assert steadied(5, history, Limits(window_s=300)).why == "2 wanted, 5 were within the last 300 s"


def test_a_clock_that_goes_back_drops_what_it_has_not_seen() -> None:
    history = remembered((Recommendation(1000.0, 9),), 3, 2, 500.0, 300.0)
    assert history == (Recommendation(500.0, 2),)


@given(
    wanted=st.lists(st.integers(0, 50), min_size=1, max_size=30),
    start=st.integers(0, 50),
    window_s=st.sampled_from([0.0, 30.0, 60.0, 300.0]),
    up=st.integers(0, 5),
    down=st.integers(0, 5),
)
def test_every_step_is_between_now_and_what_was_asked(
    wanted: list[int], start: int, window_s: float, up: int, down: int
) -> None:
    before = start
    for index, after in enumerate(run(wanted, Limits(window_s, up, down), start)):
        asked = wanted[index]
        assert min(before, asked) <= after <= max(before, asked)
        assert not up or after - before <= up
        assert not down or before - after <= down
        before = after


def test_surplus_goes_lowest_class_first_and_only_as_far_as_others_need_it() -> None:
    def surplus(name: str, priority: int, replicas: int, cards: int = 1, device: str = "A100") -> Surplus:
        return Surplus(VariantKey("x", name), priority, device, cards, replicas)

    first, second = surplus("second", 5, 4), surplus("first", 10, 2)
    other = surplus("other", 10, 9, device="H100")
    assert released([first, second, other], {"A100": 3}) == {
        VariantKey("x", "first"): 2,
        VariantKey("x", "second"): 1,
    }
    assert released([surplus("pairs", 1, 5, cards=2)], {"A100": 3}) == {VariantKey("x", "pairs"): 2}
    assert released([first, other], {"A100": 0, "H100": -2}) == {}
