#!/usr/bin/env bash
# Build the image without Docker, serve with it, unprivileged, and stop it: needs root and buildah.
#
#   scripts/check_docker.sh [flags of buildah bud]
#
# Flags carry what this machine needs and the Dockerfile must not name, such as a local mirror:
# --volume DIR:DIR:ro, --build-arg TORCH_INDEX=... . scripts/buildah.sh says what BASE=debootstrap
# does. PORT must be free.
set -euo pipefail
cd "$(dirname "$0")/.."
export BUILDAH_ISOLATION=chroot # its process is looked for below
source scripts/buildah.sh

port=${PORT:-8000}
image=saccade:check
work=$(mktemp -d)
container='' server=''

finish() {
    [ -z "$server" ] || kill -KILL "$server" 2>/dev/null || true
    [ -z "$container" ] || $buildah rm "$container" >/dev/null
    rm -rf "$work"
}
trap finish EXIT

echo "== build"
build "$image" "$@"
$buildah inspect --type image "$image" >"$work/image.json"
$buildah images "$image"

config() { # print a field of the image's configuration, one array element per line
    python3 - "$work/image.json" "$1" <<'PYTHON'
import json, sys
value = json.load(open(sys.argv[1]))["Docker"]["config"]
for key in sys.argv[2].split("."):
    value = value[key]
print(*(value if isinstance(value, list) else [value]), sep="\n")
PYTHON
}

echo "== what it holds"
scripts/image_sbom.sh "$image" "$work/sbom.json" >/dev/null
python3 - "$work/sbom.json" <<'PYTHON'
import collections, json, sys
purls = [component["purl"] for component in json.load(open(sys.argv[1]))["components"]]
kinds = collections.Counter(purl.split("/")[0] for purl in purls)
print(*(f"{count} of {kind}" for kind, count in sorted(kinds.items())), sep=", ")
assert all(kinds[kind] > 20 for kind in ("pkg:deb", "pkg:pypi")), kinds
PYTHON

mapfile -t command < <(config Entrypoint; config Cmd)
mapfile -t probe < <(config Healthcheck.Test | sed 1d)

# a question with an intervention, in the image's own Python, which has no client
cat >"$work/ask.py" <<'PYTHON'
import base64, io, json, sys, urllib.request
from PIL import Image

url = f"http://127.0.0.1:{sys.argv[1]}/v1/"
model = json.load(urllib.request.urlopen(url + "models"))["data"][0]["id"]
png = io.BytesIO()
Image.new("RGB", (64, 64), "red").save(png, "PNG")
image = "data:image/png;base64," + base64.b64encode(png.getvalue()).decode()
content = [
    {"type": "image_url", "image_url": {"url": image}},
    {"type": "text", "text": "Describe the image."},
]
body = {
    "model": model,
    "messages": [{"role": "user", "content": content}],
    "interventions": [{"method": "var"}],
    "temperature": 0,
    "max_tokens": 24,
}
headers = {"Content-Type": "application/json"}
request = urllib.request.Request(url + "chat/completions", json.dumps(body).encode(), headers)
answer = json.load(urllib.request.urlopen(request))
print(answer["choices"][0]["message"]["content"])
assert answer["interventions_applied"], answer
PYTHON

nothing_written() { # but in /cache and /tmp: the rest may be mounted read-only
    local root found
    root=$($buildah mount "$container")
    # the last three are buildah's own
    found=$(cd "$root" && find . -newer "$work/started" -type f ! -path './cache/*' ! -path './tmp/*' \
        ! -path ./etc/hosts ! -path ./etc/resolv.conf ! -path './run/*')
    $buildah umount "$container" >/dev/null
    if [ -n "$found" ]; then
        echo "It writes to what may be read-only: $found" >&2
        exit 1
    fi
    echo "wrote to /cache and /tmp alone"
}

serve_as() { # USER: serve until the image's own health check succeeds, then stop
    echo "== serve as $1"
    container=$($buildah from --pull-never "$image")
    # the one variable that moves the server and its health check
    $buildah config --env SACCADE_PORT="$port" "$container"
    touch "$work/started"
    setsid $buildah run --user "$1" "$container" -- "${command[@]}" >"$work/server.log" 2>&1 &
    local launcher=$! attempt=0 wrapper status=0
    until $buildah run "$container" -- "${probe[@]}" 2>"$work/probe.log"; do
        attempt=$((attempt + 1))
        if ! kill -0 "$launcher" 2>/dev/null || [ "$attempt" = 120 ]; then
            cat "$work/server.log"
            echo "The server does not answer /live: $(grep Error "$work/probe.log" | tail -1)" >&2
            exit 1
        fi
        sleep 1
    done
    $buildah run "$container" -- python - "$port" <"$work/ask.py"
    echo "answers /live and a question"
    # buildah's own helper takes the user too; its child is what Docker would run as PID 1
    wrapper=$(pgrep --oldest --uid "${1%%:*}" --full '^buildah-chroot-exec') || {
        echo "The server does not run as $1." >&2
        exit 1
    }
    server=$(pgrep --parent "$wrapper")
    ps -o uid,gid,rss,args -p "$server"
    kill -TERM "$server"
    wait "$launcher" || status=$?
    server=''
    if [ "$status" != 0 ]; then
        cat "$work/server.log"
        echo "SIGTERM ended it with $status instead of 0." >&2
        exit 1
    fi
    echo "SIGTERM ended it with 0"
    nothing_written
    $buildah rm "$container" >/dev/null
    container=''
}

serve_as "$(config User)"
serve_as 12345:0 # as a cluster does that chooses the UID
