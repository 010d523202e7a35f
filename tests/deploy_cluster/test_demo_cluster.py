import pytest
import yaml
from demo import VARIANTS, read_demo
from demo_cluster import chart_objects
from processes import find_binary


@pytest.mark.skipif(find_binary("helm") is None, reason="needs helm: deploy/cluster/build.sh builds it")
def test_the_chart_takes_the_demo_s_values_and_makes_an_hpa_for_every_variant():
    objects = chart_objects("fleetopt-system", "http://prometheus:1", "http://optimizer:2")
    demo = read_demo()
    found = {(document["kind"], document["metadata"]["name"]): document for document in objects}
    for variant in VARIANTS:
        hpa = found["HorizontalPodAutoscaler", variant.name]
        assert hpa["metadata"]["namespace"] == demo.namespace
        assert hpa["spec"]["scaleTargetRef"]["name"] == variant.name
        assert hpa["spec"]["metrics"][0]["external"]["metric"]["selector"]["matchLabels"] == {
            "variant_name": variant.name
        }
    settings = found["ConfigMap", "fleetopt-variantautoscaling-config"]["data"]
    assert settings["PROMETHEUS_BASE_URL"] == "http://prometheus:1"
    assert settings["FLEETOPT_OPTIMIZER_URL"] == "http://optimizer:2"
    profiles = found["ConfigMap", "model-profiles"]["data"]
    assert {entry["name"] for text in profiles.values() for entry in yaml.safe_load(text)} == set(
        demo.targets
    )
    # They run as processes beside the cluster.
    assert "Deployment" not in {kind for kind, _ in found}
