#!/usr/bin/env bash
# Copy the list of what an image holds, in CycloneDX's JSON, out of the image.
#
#   scripts/image_sbom.sh NAME:TAG FILE
set -euo pipefail
cd "$(dirname "$0")/.."

image=$1 file=$2
inside=/srv/sbom/saccade.cdx.json
container='' partial=''

finish() {
    [ -z "$container" ] || $buildah rm "$container" >/dev/null
    [ -z "$partial" ] || rm -f "$partial"
}
trap finish EXIT

mkdir -p "$(dirname "$file")"
partial=$file.partial
if docker info >/dev/null 2>&1; then
    docker run --rm --entrypoint cat "$image" "$inside" >"$partial"
elif command -v buildah >/dev/null; then
    source scripts/buildah.sh
    container=$($buildah from --pull-never "$image")
    $buildah run "$container" -- cat "$inside" >"$partial"
else
    echo "make sbom needs a running Docker, or buildah (on Debian: apt-get install buildah)." >&2
    exit 1
fi
mv "$partial" "$file"
echo "$file"
