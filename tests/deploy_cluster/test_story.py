"""The story without a cluster: what is seen is made up, also such that it must not come true."""

import dataclasses
from collections.abc import Mapping
from io import StringIO

import pytest
from demo import VARIANTS, read_demo
from rich.console import Console
from story import CHAT, CODER, DOCS, STORY, Seen, Story, VariantSeen, is_settled
from table import screen, summary

# Replicas of chat-h100, coder-mi300x, docs-a100, docs-h100 at the end of each phase.
AS_TOLD = {
    "quiet": (1, 1, 1, 1),
    "rise": (4, 4, 2, 3),
    "fall": (1, 1, 1, 1),
    "fill": (1, 1, 3, 6),
    "rush": (7, 1, 8, 1),
    "relief": (1, 1, 2, 3),
}
UNSERVED = {"rush": {DOCS}}


def seen(
    replicas: tuple[int, ...],
    rates_rps: Mapping[str, float],
    unserved: frozenset[str] | set[str] = frozenset(),
) -> Seen:
    variants = {
        variant.name: VariantSeen(
            model=variant.model,
            desired=count,
            current=count,
            ready=count,
            arrival_rps=rates_rps[variant.model],
            reason="DemandUnserved" if variant.model in unserved else "OptimizationSucceeded",
            message="some words",
            ttft_ms={"predicted": 123.4},
            on_target=variant.model not in unserved,
        )
        for variant, count in zip(VARIANTS, replicas, strict=True)
    }
    chat, coder, a100, h100 = replicas
    gpus = {"A100": (a100, 8), "H100": (chat + h100, 8), "MI300X": (coder, 8)}
    return Seen(variants, gpus, 100.0 * sum(replicas))


def told(replicas: Mapping[str, tuple[int, ...]], unserved: Mapping[str, set[str]] = UNSERVED) -> Story:
    """Tell the story with these replicas at every look of a phase."""
    story, now_s = Story(least_s=10.0, most_s=30.0), 0.0
    before = AS_TOLD["quiet"]
    while (phase := story.phase) is not None:
        # At first nothing has changed but the load.
        story.look(seen(before, phase.rates_rps), now_s)
        while story.phase is phase:
            now_s += 5.0
            story.look(seen(replicas[phase.name], phase.rates_rps, unserved.get(phase.name, ())), now_s)
        before = replicas[phase.name]
    return story


def test_it_comes_true_when_everything_is_seen():
    story = told(AS_TOLD)
    assert story.came_true
    assert [entry.phase.name for entry in story.told] == list(AS_TOLD)
    # Each phase lasts as long as it takes to read it.
    assert [entry.seconds for entry in story.told] == [10.0] * len(STORY)


@pytest.mark.parametrize(
    ("phase", "replicas", "missing"),
    [
        ("rise", (1, 4, 2, 3), f"more replicas of {CHAT} serve"),
        ("rise", (4, 4, 1, 1), f"more replicas of {DOCS} serve"),
        ("fall", (1, 4, 1, 1), f"fewer replicas of {CODER} are left"),
        ("fall", (2, 1, 1, 1), "one replica of every variant is left"),
        ("fill", (1, 1, 8, 1), "docs-h100 has more replicas"),
        ("rush", (1, 1, 8, 6), f"more replicas of {CHAT} serve"),
        ("rush", (7, 1, 8, 6), "docs-h100 has fewer replicas"),
        ("rush", (7, 1, 7, 1), "no H100 and no A100 is free"),
        ("relief", (7, 1, 2, 3), f"fewer replicas of {CHAT} are left"),
    ],
)
def test_it_does_not_come_true_when_replicas_do_not_do_what_it_tells(phase, replicas, missing):
    story = told(AS_TOLD | {phase: replicas})
    assert not story.came_true
    # It ends there.
    assert story.told[-1].phase.name == phase
    assert missing in story.told[-1].missing


def test_it_does_not_come_true_when_the_premium_model_yields_too():
    story = told(AS_TOLD, {"rush": {CHAT, DOCS}})
    assert not story.came_true
    assert f"all demand of {CHAT} is served" in story.told[4].missing


def test_it_does_not_come_true_when_the_premium_model_has_lost_a_replica_in_between():
    story = Story((STORY[4],), least_s=10.0, most_s=30.0)
    rates = STORY[4].rates_rps
    for now_s, replicas in enumerate([(2, 1, 3, 6), (1, 1, 3, 6), (7, 1, 8, 1)]):
        story.look(seen(replicas, rates, {DOCS}), 5.0 * now_s)
    story.look(seen((7, 1, 8, 1), rates, {DOCS}), 30.0)
    assert not story.came_true
    assert story.told[0].missing == (f"{CHAT} never has less than before",)


def test_a_phase_waits_until_the_load_is_known_and_pods_are_ready():
    story = Story(least_s=10.0, most_s=100.0)
    rates = STORY[0].rates_rps
    at_rest = seen(AS_TOLD["quiet"], rates)
    variant = at_rest.variants["chat-h100"]
    for now_s, change in enumerate(
        ({"arrival_rps": 1.3 * rates[CHAT]}, {"ready": 0}, {"current": 2}, {"desired": None}), start=2
    ):
        other = {**at_rest.variants, "chat-h100": dataclasses.replace(variant, **change)}
        unsettled = dataclasses.replace(at_rest, variants=other)
        assert not is_settled(unsettled, rates)
        story.look(unsettled, 10.0 * now_s)
        assert story.phase is STORY[0]
    story.look(at_rest, 99.0)
    assert story.phase is STORY[1]


def test_it_does_not_come_true_when_requests_of_the_premium_model_wait_too_long():
    story = Story((STORY[4],), least_s=10.0, most_s=30.0)
    rates = STORY[4].rates_rps
    story.look(seen((1, 1, 3, 6), rates), 0.0)
    at_the_end = seen((7, 1, 8, 1), rates, {DOCS})
    slow = dataclasses.replace(at_the_end.variants["chat-h100"], on_target=False)
    story.look(dataclasses.replace(at_the_end, variants={**at_the_end.variants, "chat-h100": slow}), 30.0)
    assert story.told[0].missing == (f"requests of {CHAT} meet its targets",)


def test_the_screen_and_the_summary_say_it():
    console = Console(width=100, record=True, file=StringIO())
    story = told(AS_TOLD | {"fill": (1, 1, 8, 1)})
    unfinished = Story()
    unfinished.look(seen(AS_TOLD["quiet"], STORY[0].rates_rps), 0.0)
    demo = read_demo()
    console.print(screen(unfinished, seen((7, 1, 8, 0), STORY[4].rates_rps, {DOCS}), demo, 12.0))
    console.print(summary(story))
    text = console.export_text()
    assert "1/6 quiet" in text
    assert "waiting for: what was decided serves what arrives, one replica of every variant" in text
    assert "7/7/7" in text
    assert "123/-/500" in text
    assert "docs-h100: DemandUnserved: some words" in text
    assert "7/8 GPUs" in text
    assert "16.00 $/h" in text
    assert "not seen: docs-h100 has more replicas" in " ".join(text.split())
    assert "not reached" in text
    # Nothing is cut off.
    assert "…" not in text


def test_the_demo_s_objects_agree_with_the_chart_s_values():
    demo = read_demo()
    assert set(demo.targets) == {CHAT, CODER, DOCS}
    for server in demo.servers().values():
        assert server.engine.max_batch > 0
    deployments = [d for d in demo.objects() if d["kind"] == "Deployment"]
    assert [d["metadata"]["name"] for d in deployments] == [variant.name for variant in VARIANTS]
    for deployment in deployments:
        (container,) = deployment["spec"]["template"]["spec"]["containers"]
        (selector,) = deployment["spec"]["template"]["spec"]["nodeSelector"]
        (resource,) = container["resources"]["requests"]
        assert selector.split("/")[0] == resource.split("/")[0]
