# How images are built here (sourced after lib.sh): buildah with storage of its own in the cache, so that nothing mixes with
# the images of whoever owns this machine; and a base image made from the host's own Debian packages, for machines that
# reach no container registry.
# shellcheck shell=bash

if [ -z "${BUILD_DRIVER:-}" ]; then
  BUILD_DRIVER=overlay
  buildah --root "$CACHE/containers/overlay" --runroot "$CACHE/containers/run-overlay" --storage-driver overlay images >/dev/null 2>&1 ||
    BUILD_DRIVER=vfs
fi

builder() { # command argument…
  local command=$1; shift
  local options=()
  if [ "$command" = build ]; then
    # A machine without namespaces to spare for us can do no more.
    options=(--isolation chroot --network host)
  fi
  buildah --root "$CACHE/containers/$BUILD_DRIVER" --runroot "$CACHE/containers/run-$BUILD_DRIVER" --storage-driver "$BUILD_DRIVER" \
    "$command" "${options[@]}" "$@"
}

base_sources() { # the files that name Debian's packages on this host; not those of other makers
  local file
  for file in /etc/apt/sources.list /etc/apt/sources.list.d/{debian,ubuntu}.sources; do [ ! -s "$file" ] || echo "$file"; done
}

# base_reference: print the name of the base image
base_reference() {
  if [ -n "${ENTREPOT_BASE_IMAGE:-}" ]; then echo "$ENTREPOT_BASE_IMAGE"; return; fi
  local sources
  mapfile -t sources < <(base_sources)
  [ ${#sources[@]} -gt 0 ] || die "no Debian package sources here; set ENTREPOT_BASE_IMAGE"
  echo "localhost/entrepot/base:$({ cat /etc/os-release "${sources[@]}"; declare -f make_base; } | sha256sum | cut -c1-12)"
}

# make_base REFERENCE: make the base image if it is not there
make_base() {
  if [ "$1" = "${ENTREPOT_BASE_IMAGE:-}" ] || builder inspect --type image "$1" >/dev/null 2>&1; then return; fi
  local sources codename context
  mapfile -t sources < <(base_sources)
  codename=$(. /etc/os-release && echo "$VERSION_CODENAME")
  say "images: making the base image from Debian $codename"
  context=$(mktemp -d "$CACHE/base.XXXXXX")
  mmdebstrap --quiet --variant=minbase --include=python3,ca-certificates --aptopt='APT::Install-Recommends "false"' \
    --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
    --dpkgopt='path-exclude=/usr/share/info/*' "$codename" "$context/base.tar" "${sources[@]}"
  printf 'FROM scratch\nADD base.tar /\nCMD ["bash"]\n' >"$context/Containerfile"
  builder build -q -t "$1" "$context" >/dev/null
  rm -rf "$context"
}
