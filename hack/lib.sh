# Shared by the scripts in hack/ (sourced, never run): where things are kept, and how a script speaks.
# shellcheck shell=bash
# Every script must work with an empty environment but HOME and PATH, so nothing here relies on more than those.

TOP=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
CACHE=${ENTREPOT_CACHE:-$HOME/.cache/entrepot}
export PATH="$CACHE/bin:$PATH:/usr/local/sbin:/usr/sbin:/sbin"

# The directories that hold our Python packages; PYTHONPATH of everything that runs from the work tree.
PYTHON_PARTS=(core operator services/setup services/registry services/token services/syncer services/keeper)

say() { printf '[%3ds] %s\n' "$SECONDS" "$*"; }
warn() { printf '[%3ds] %s\n' "$SECONDS" "$*" >&2; }
die() { printf 'error: %s\n' "$*" >&2; exit 1; }

# hash_of FILE|DIRECTORY… : 12 hex digits over names, modes' executable bit and contents; the key of everything cached.
# Byte code and editors' leftovers do not count.
hash_of() {
  local path
  for path; do [ -e "$path" ] || die "cannot hash $path: no such file"; done
  find "$@" -type f ! -path '*/__pycache__/*' ! -name '*.pyc' ! -name '.*.sw?' ! -name '*~' -printf '%p\n' | LC_ALL=C sort |
    while IFS= read -r path; do
      printf '%s %s ' "${path#"$TOP/"}" "$([ -x "$path" ] && echo x)"
      sha256sum <"$path"
    done | sha256sum | cut -c1-12
}

python_path() {
  local part joined=
  for part in "${PYTHON_PARTS[@]}"; do joined+=${joined:+:}$TOP/$part; done
  printf '%s\n' "$joined"
}

# own_node: is the cluster in use the project's own node (and not the user's own or kind)?
# The own node's kubeconfig counts as unset, so that a shell in which it was exported behaves like any other.
own_kubeconfig() { (. "$TOP/hack/cluster/env" && printf '%s\n' "$CLUSTER_DIR/admin.kubeconfig"); }
have_user_cluster() { [ -n "${KUBECONFIG:-}" ] && [ "$KUBECONFIG" != "$(own_kubeconfig)" ]; }
have_kind() { command -v kind >/dev/null && command -v docker >/dev/null && docker info >/dev/null 2>&1; }
# CLUSTER_KIND=own says so whatever else is there: the tests do.
cluster_kind() { if [ -n "${CLUSTER_KIND:-}" ]; then echo "$CLUSTER_KIND"; elif have_user_cluster; then echo user; elif have_kind; then echo kind; else echo own; fi; }
