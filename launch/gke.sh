#!/usr/bin/env bash
# Trains on a TPU slice of a GKE cluster as a JobSet, which starts anew when a machine is lost.
#
#     NAME=... IMAGE=... TPU=... TOPOLOGY=... HOSTS=... WORKDIR=gs://... [CHIPS=4] \
#         launch/gke.sh [--dry-run] --config=configs/FILE.py [FLAG...]
#
# The cluster needs the JobSet controller and a node pool of that topology; IMAGE is made from
# launch/Dockerfile. Logs: kubectl logs --follow --selector=jobset.sigs.k8s.io/jobset-name=NAME
# shellcheck source=launch/common.sh
source "$(dirname "$0")/common.sh" "$@"
[[ ${1:-} != --dry-run ]] || shift
need NAME IMAGE TPU TOPOLOGY HOSTS WORKDIR
CHIPS=${CHIPS:-4}
quoted=""
for flag in "$@"; do # YAML takes single-quoted strings, in which '' is '
    quoted+="'${flag//\'/\'\'}', "
done
yaml=$(<"$(dirname "$0")/jobset.yaml")
for name in NAME IMAGE TPU TOPOLOGY HOSTS CHIPS WORKDIR; do
    yaml=${yaml//\$$name/${!name}}
done
yaml=${yaml//\$FLAGS/${quoted%, }}
if [[ -n $dry ]]; then
    echo "kubectl apply --filename=- <<'END'"
    echo "$yaml"
    echo END
else
    kubectl apply --filename=- <<<"$yaml"
fi
