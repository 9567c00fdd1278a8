#!/bin/sh
# Fetch what a machine with a GPU and without a network lacks, as wheels for its Python, into
# build/wheels: benchmarks/gpu_bench.py unpacks them there. PYTHON and TARGET choose other ones.
#
#     scripts/gpu_wheels.sh [FOLDER]
set -eu
cd "$(dirname "$0")/.."
folder=${1:-build/wheels}
target=${TARGET:-3.12}
fresh="$folder.new"
rm -rf "$fresh"
mkdir -p "$fresh"
platforms=
for level in manylinux_2_28 manylinux_2_27 manylinux_2_17 manylinux2014 manylinux1; do
	platforms="$platforms --platform ${level}_x86_64"
done
# shellcheck disable=SC2086 # one word an option
"${PYTHON:-python3}" -m pip download --disable-pip-version-check --quiet --no-deps \
	--only-binary=:all: --implementation cp --python-version "$target" $platforms \
	--constraint constraints.txt --requirement scripts/gpu_wheels.txt --dest "$fresh"
rm -rf "$folder"
mv "$fresh" "$folder"
echo "$(ls "$folder" | wc -l) wheels, $(du -sm "$folder" | cut -f1) MB, in $folder"
