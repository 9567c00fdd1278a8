# To be sourced: buildah where it runs, often inside a container itself. Needs the repository as folder.
#
# BASE=debootstrap makes the Dockerfile's base image here, from Debian's own packages (root alone
# can), where no image registry can be reached.

# the image's own commands are trusted, and a container has no namespaces to give away
export BUILDAH_ISOLATION=${BUILDAH_ISOLATION:-chroot}
driver=${STORAGE_DRIVER:-}
if [ -z "$driver" ] && ! buildah info >/dev/null 2>&1; then
    driver=vfs # needs no mount: slow and large, but everywhere
fi
# as a flag: buildah heeds the variable only where a storage.conf exists
buildah="buildah${driver:+ --storage-driver $driver}"

make_base() {
    local base suite scratch root
    base=docker.io/library/$(awk '$1 == "FROM" { print $2; exit }' Dockerfile)
    if [ "${BASE:-}" != debootstrap ] || $buildah inspect --type image "$base" >/dev/null 2>&1; then
        return
    fi
    echo "== base image $base"
    suite=${base##*:}
    root=$(mktemp -d)
    if ! debootstrap --variant=minbase "${suite%-slim}" "$root" >"$root.log"; then
        tail -5 "$root.log" >&2
        rm -rf "$root" "$root.log"
        return 1
    fi
    scratch=$($buildah from scratch)
    $buildah add --quiet "$scratch" "$root" / >/dev/null
    $buildah config --cmd bash "$scratch"
    $buildah commit --quiet --rm "$scratch" "$base" >/dev/null
    rm -rf "$root" "$root.log"
}

build() { # NAME:TAG FLAGS...: docker is the format that knows HEALTHCHECK
    local layers=--layers # a second build keeps the layer of PyTorch, as Docker's would
    [ "$driver" != vfs ] || layers= # where each layer is a copy of everything below it
    make_base
    $buildah bud --format docker $layers --tag "$@" .
}
