"""What the controller can say is what docs/operations.md and docs/controller.md explain."""

import ast
import re
from pathlib import Path

import pytest
from controller_tools import va

from controller.actuate import Decision
from controller.crd import Status, parse_variant
from controller.latency import Compared, Latency
from controller.metrics import PassFigures, VariantMetrics
from controller.settings import KEYS, PROMETHEUS_KEYS

ROOT = Path(__file__).parents[2]
OPERATIONS = (ROOT / "docs" / "operations.md").read_text()
CONTROLLER = (ROOT / "docs" / "controller.md").read_text()
TYPES = ("MetricsAvailable", "OptimizationReady", "TargetResolved", "InventoryKnown")


def reasons() -> set[str]:
    """Words in camel case that are arguments of conditions and holds, or what holds are chosen from."""
    found: set[str] = set()
    for path in sorted((ROOT / "controller").glob("*.py")):
        for thing in ast.walk(ast.parse(path.read_text())):
            is_said = isinstance(thing, ast.Call) and ast.unparse(thing.func) in ("Hold", "Condition")
            if is_said or (isinstance(thing, ast.Assign) and ast.unparse(thing.targets[0]) == "_HOPELESS"):
                texts = [c.value for c in ast.walk(thing) if isinstance(c, ast.Constant)]
                found |= {t for t in texts if isinstance(t, str) and re.fullmatch(r"([A-Z][a-z]+){2,}", t)}
    return found


def test_every_reason_is_explained_and_none_is_that_cannot_be() -> None:
    said = reasons() | {"Unlimited"}
    assert len(said) > 20
    table = OPERATIONS.split("## Conditions")[1].split("## Events")[0]
    explained = set(re.findall(r"\b(?:True|False) ((?:[A-Z]\w+(?:, )?)+) \|", table))
    assert {reason for group in explained for reason in group.split(", ")} == said - set(TYPES)


def test_every_metric_is_explained_and_none_is_that_is_not_there() -> None:
    metrics, variant = VariantMetrics(), parse_variant(va())
    metrics.publish([Decision(variant, 1, 2, "A100", 2, "", Status(()))])
    latency = Latency(1.0, 1.0)
    metrics.passed(
        PassFigures(
            ok=True, at_unix_s=1.0, gap=0.0, latencies={variant.key: Compared("A100", latency, latency)}
        )
    )
    families = {family.name for family in metrics.collect()}
    assert families
    names = {name for name in re.findall(r"`((?:fleetopt_controller|inferno)_\w+)", OPERATIONS)}
    there = {name for name in families if not name.startswith("wva_")}
    assert {name.removesuffix("_total") for name in names} == there
    assert {name.replace("wva_", "inferno_") for name in families if name.startswith("wva_")} <= there


@pytest.mark.parametrize("key", [*KEYS, *PROMETHEUS_KEYS])
def test_every_setting_is_explained(key: str) -> None:
    assert f"`{key}`" in CONTROLLER.split("## Settings")[1]
