#!/usr/bin/env bash
# fleetopt in a kind cluster whose nodes say that they have GPUs: the image, the chart, Prometheus with its adapter, a
# simulated model server, and an HPA that follows what is decided. For machines with Docker; not part of the tests,
# which have none ('make cluster' runs the same story on real components without it).
#
#   deploy/kind/run.sh up       make it; some ten minutes
#   deploy/kind/run.sh down     delete it
#
# CLUSTER, IMAGE: names, by default fleetopt and fleetopt:kind.
set -euo pipefail
here="$(cd "$(dirname "$0")" && pwd)"
root="$(cd "$here/../.." && pwd)"
cluster="${CLUSTER:-fleetopt}"
image="${IMAGE:-fleetopt:kind}"
system=fleetopt-system
prometheus=http://prometheus-operated.monitoring.svc.cluster.local

need() {
    local program
    for program in "$@"; do
        if ! command -v "$program" >/dev/null; then
            echo "$program is needed." >&2
            exit 2
        fi
    done
}

# Commands of this cluster, whatever the current context is.
on_cluster() {
    "$1" "--${2}=kind-$cluster" "${@:3}"
}
k() { on_cluster kubectl context "$@"; }
h() { on_cluster helm kube-context "$@"; }

# Extended resources that nobody but their label tells of: Kubernetes schedules by them all the same.
give_gpus() {
    local vendor="$1" node
    for node in $(k get nodes --selector="$vendor/gpu.product" --output=name); do
        k patch "$node" --subresource=status --type=json \
            --patch="[{\"op\": \"add\", \"path\": \"/status/capacity/$vendor~1gpu\", \"value\": \"8\"}]"
    done
}

up() {
    need docker kind kubectl helm
    kind create cluster --name "$cluster" --config "$here/cluster.yaml" --wait 5m
    give_gpus nvidia.com
    give_gpus amd.com

    docker build --tag "$image" "$root"
    kind load docker-image "$image" --name "$cluster"

    # A Prometheus that takes every ServiceMonitor, and the adapter that serves its gauge to HPAs.
    h upgrade --install prometheus kube-prometheus-stack --repo https://prometheus-community.github.io/helm-charts \
        --namespace monitoring --create-namespace --wait --timeout 10m \
        --set alertmanager.enabled=false,grafana.enabled=false,nodeExporter.enabled=false \
        --set prometheus.prometheusSpec.serviceMonitorSelectorNilUsesHelmValues=false \
        --set prometheus.prometheusSpec.ruleSelectorNilUsesHelmValues=false
    h upgrade --install prometheus-adapter prometheus-adapter \
        --repo https://prometheus-community.github.io/helm-charts --namespace monitoring --wait --timeout 5m \
        --values "$root/deploy/samples/prometheus-adapter-values.yaml" \
        --set "prometheus.url=$prometheus,prometheus.port=9090"

    h upgrade --install fleetopt "$root/deploy/helm/fleetopt" --namespace "$system" --create-namespace \
        --set "image.repository=${image%:*},image.tag=${image##*:},image.pullPolicy=Never" \
        --set "settings.PROMETHEUS_BASE_URL=$prometheus:9090,settings.GLOBAL_OPT_INTERVAL=30s" \
        --set settings.FLEETOPT_SCALE_DOWN_WINDOW=1m \
        --set serviceMonitor.enabled=true,prometheusRule.enabled=true \
        --wait --timeout 5m
    k apply --filename "$root/deploy/samples/configmaps.yaml"

    k create namespace llm --dry-run=client --output=yaml | k apply --filename -
    k apply --filename "$here/model-server.yaml"
    k apply --filename "$root/deploy/samples/variant-2025.yaml" --filename "$root/deploy/samples/hpa.yaml"
    cat <<EOF

kubectl --context kind-$cluster get va,hpa,deployments --namespace llm --watch
kubectl --context kind-$cluster describe va vllm --namespace llm
kubectl --context kind-$cluster scale deployment load --namespace llm --replicas 3      # more load, or less
EOF
}

down() {
    need kind
    kind delete cluster --name "$cluster"
}

case "${1:-}" in
up | down) "$1" ;;
*)
    echo "usage: $0 up|down" >&2
    exit 2
    ;;
esac
