#!/usr/bin/env bash
# Build the image with Docker, or with buildah where no Docker runs.
#
#   scripts/build_image.sh NAME:TAG [flags that docker build and buildah bud share]
#
# Flags carry what this machine needs and the Dockerfile must not name, such as a local mirror.
# Only buildah knows --volume DIR:DIR:ro; scripts/buildah.sh says how it is set up.
set -euo pipefail
cd "$(dirname "$0")/.."

if docker info >/dev/null 2>&1; then
    exec docker build --tag "$@" .
elif command -v buildah >/dev/null; then
    source scripts/buildah.sh
    echo "No Docker runs here; building with buildah${driver:+ (storage: $driver)}."
    build "$@"
else
    echo "make docker needs a running Docker, or buildah (on Debian: apt-get install buildah)." >&2
    exit 1
fi
