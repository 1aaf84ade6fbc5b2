#!/usr/bin/env bash
# Builds the CPU image with buildah and tries it with podman, under the restrictions that the overlays give a worker: a
# user that is not root, a read-only root file system, no capabilities, no new privileges, seccomp's default profile, the
# limits of overlays/cpu-dev. Needs neither a Docker engine nor a cluster; run it as root, from anywhere. On Debian:
# apt-get install buildah podman runc iptables debootstrap curl
#
#   deploy/check_image.sh                        # some ten minutes; exits 77, and says why, if it cannot be done here
#   IMAGE=topk-serve:0.1.0-cpu deploy/check_image.sh     # an image that is there, without building it
#
# If no registry gives the base image, debootstrap makes a stand-in of that name: Debian 12 with its own Python 3.11.
# BUILD_OPTIONS is for buildah, such as a proxy or a package index of your own; NICE is nice's level.
set -euo pipefail
cd "$(dirname "$0")/.."

for program in buildah podman curl; do
    if ! command -v "$program" > /dev/null; then
        echo "check_image: skipped, since $program is not installed" >&2
        exit 77
    fi
done
if [ "$(id -u)" != 0 ]; then
    echo "check_image: skipped, since it builds and runs containers as root" >&2
    exit 77
fi

NICE="nice -n ${NICE:-10}"
BASE="$(sed -n 's/^ARG PYTHON_IMAGE=//p' deploy/Dockerfile)"
KEY=key-of-a-check
PORT=${PORT:-18000} GRPC_PORT=${GRPC_PORT:-19000}
NAME=topk-check-$$
# As a worker of overlays/cpu-dev. 256 MiB of /dev/shm are what Ray's object store there fits into.
RESTRICTED=(--user 10001:10001 --read-only --cap-drop ALL --security-opt no-new-privileges --tmpfs /tmp:rw,size=4g,mode=1777
    --shm-size 256m --memory 2g --cpus 1)
# podman asks for more than a hard limit of this machine's may allow.
LIMITS=(--ulimit "nofile=$(ulimit -Hn):$(ulimit -Hn)" --ulimit "nproc=4096:4096")
PODMAN=(podman)

stand_in() {
    if ! command -v debootstrap > /dev/null; then
        echo "check_image: skipped, since $BASE cannot be pulled and debootstrap is not installed" >&2
        exit 77
    fi
    local root
    root="$(mktemp -d)"
    $NICE debootstrap --variant=minbase --include=python3,python3-venv,ca-certificates bookworm "$root" > /dev/null
    rm -rf "$root"/var/cache/apt/archives/*.deb "$root"/var/lib/apt/lists/*
    tar -C "$root" -c . | podman import - "docker.io/library/$BASE" > /dev/null
    rm -rf "$root"
    echo "base: a stand-in for $BASE, made by debootstrap"
}

get_base() {
    if ! podman image exists "$BASE" && ! timeout 120 podman pull --quiet "$BASE" > /dev/null 2>&1; then stand_in; fi
    # The runtime that can run a container here: podman's own choice, or runc.
    local runtime
    for runtime in "" runc; do
        PODMAN=(podman ${runtime:+--runtime "$runtime"})
        if "${PODMAN[@]}" run --rm "${LIMITS[@]}" --memory 1g --cpus 1 "$BASE" true 2> /tmp/$NAME.log; then return; fi
    done
    echo "check_image: skipped, since podman runs no container here: $(tail -n 1 /tmp/$NAME.log)" >&2
    exit 77
}

build() {
    IMAGE=localhost/topk-serve:check-cpu
    # The format of docker build: OCI's has no SHELL, so that the Dockerfile's would be ignored.
    # shellcheck disable=SC2086
    time $NICE buildah build --format docker --isolation chroot --layers ${BUILD_OPTIONS:-} -f deploy/Dockerfile -t "$IMAGE" . 2>&1 | tail -n 30
}

sizes() {
    echo "image: $(podman image inspect --format '{{.Size}}' "$IMAGE" | awk '{printf "%.2f GB unpacked", $1 / 1e9}')"
    "${PODMAN[@]}" run --rm "${LIMITS[@]}" "$IMAGE" bash -c 'du -sm /opt/topk; cd /opt/topk/lib/python3*/site-packages; du -sm * | sort -rn | head -n 12'
}

client() { # $1: a program, run by the image's Python in the container that serves
    "${PODMAN[@]}" exec -i "$NAME" python - "$KEY" <<< "$1"
}

remove() { "${PODMAN[@]}" rm --force --time 0 "$NAME" > /dev/null 2>&1 || true; }
trap remove EXIT

wait_until_ready() {
    local began=$SECONDS
    until curl --silent --fail --max-time 2 "http://127.0.0.1:$PORT/health/ready" > /dev/null; do
        if [ $((SECONDS - began)) -gt 300 ] || [ "$(podman inspect --format '{{.State.Status}}' "$NAME")" = exited ]; then
            podman logs --tail 20 "$NAME"
            echo "check_image: it was not ready after $((SECONDS - began)) s" >&2
            exit 1
        fi
        sleep 0.5
    done
    echo "ready after $((SECONDS - began)) s"
}

get_base
[ -n "${IMAGE:-}" ] || build
sizes

echo "--- without a key it does not start, and says why"
if "${PODMAN[@]}" run --rm "${LIMITS[@]}" "${RESTRICTED[@]}" "$IMAGE" > /tmp/$NAME.log 2>&1; then
    echo "check_image: it serves other machines without a key" >&2
    exit 1
fi
grep -i 'no API key' /tmp/$NAME.log
rm -f /tmp/$NAME.log

echo "--- as a worker is restricted, published on a port"
"${PODMAN[@]}" run --detach --name "$NAME" "${LIMITS[@]}" "${RESTRICTED[@]}" --publish "127.0.0.1:$PORT:8000" --publish "127.0.0.1:$GRPC_PORT:9000" \
    --env TOPK_API_KEYS=$KEY "$IMAGE" topk serve --host 0.0.0.0 --num-threads 1 --num-blocks 1024 > /dev/null
wait_until_ready
"${PODMAN[@]}" exec "$NAME" bash -lc 'id; command -v ray topk python; touch /opt/x 2>&1 || true; grep -E "CapEff|NoNewPrivs|^Seccomp:" /proc/self/status'

echo "--- a steered completion, through the published port"
curl --silent --show-error --fail "http://127.0.0.1:$PORT/v1/completions" -H "Authorization: Bearer $KEY" -H 'Content-Type: application/json' \
    -d '{"model": "topk-default", "prompt": "In the morning the boys", "max_tokens": 16, "seed": 1, "temperature": 0.7, "compare": true,
         "interventions": [{"layer": 3, "neuron": 85, "op": "add", "value": 12.0, "positions": "generated"}]}'
echo

echo "--- a trace over gRPC"
client '
import sys, grpc
from service.pb import topk_pb2 as pb, topk_pb2_grpc
with grpc.insecure_channel("127.0.0.1:9000") as channel:
    request = pb.ActivationsRequest(model="topk-default", input=pb.Prompt(text="The ship sailed"), trace=pb.TraceOptions())
    reply = topk_pb2_grpc.TopKServiceStub(channel).Activations(request, timeout=30, metadata=[("authorization", "Bearer " + sys.argv[1])])
    trace = reply.data[0].trace
    print(len(trace.token_ids), "tokens,", list(trace.layers), "layers, k =", trace.k, "and", len(trace.values), "bytes of values")
'

echo "--- what runs a step: the library of the wheel, since the image has no compiler"
client '
import glob, shutil, sys
from service.engine.native import build
compilers = [path for name in ("cc", "gcc", *build.COMPILERS, "clang") if (path := shutil.which(name))]
if compilers:
    sys.exit(f"check_image: there is a compiler: {compilers}")
library = build.library()
if library.parent != build.SOURCES:
    sys.exit(f"check_image: {library} is not in the package")
users = [maps.split("/")[2] for maps in glob.glob("/proc/[0-9]*/maps") if str(library) in open(maps).read()]
users = [open(f"/proc/{pid}/cmdline").read().split("\0")[0] for pid in users]
if not users:
    sys.exit(f"check_image: no process uses {library}")
print(library, "in", *users)
'

echo "--- SIGTERM with a stream under way"
curl --silent --no-buffer "http://127.0.0.1:$PORT/v1/completions" -H "Authorization: Bearer $KEY" -H 'Content-Type: application/json' \
    -d '{"model": "topk-default", "prompt": "Once", "max_tokens": 480, "n": 4, "ignore_eos": true, "stream": true}' > /tmp/$NAME.stream &
stream=$!
until [ -s /tmp/$NAME.stream ]; do sleep 0.1; done
began=$SECONDS
"${PODMAN[@]}" kill --signal TERM "$NAME" > /dev/null
wait $stream
echo "the stream's end after $((SECONDS - began)) s: $(grep -c '"text"' /tmp/$NAME.stream) events, $(grep -v '^$' /tmp/$NAME.stream | tail -n 1)"
[ "$(grep -v '^$' /tmp/$NAME.stream | tail -n 1)" = 'data: [DONE]' ]
rm -f /tmp/$NAME.stream
echo "exit status $("${PODMAN[@]}" wait "$NAME"), $((SECONDS - began)) s after the signal"
echo "check_image: all of it passed"
