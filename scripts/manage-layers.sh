#!/bin/sh
# The guide's one door to all that is done with layers. Each word is the task of scripts/inv of the same name.
set -eu

usage() {
    cat <<'END'
Usage: manage-layers.sh VERB [all|LAYER]

  status     how each layer stands
  build      build layers
  optimize   make layers smaller
  validate   check layers
  report     report on layers
  clean      remove what was built

LAYER is the name of a folder in layers/; without one, all layers are meant.
The tasks themselves can more: scripts/inv --list
END
}

wrong() {
    echo "manage-layers.sh: $1" >&2
    usage >&2
    exit 2
}

for word in "$@"; do
    case $word in
    -h | --help)
        usage
        exit 0
        ;;
    esac
done
[ $# -ge 1 ] || wrong "a verb is missing."
[ $# -le 2 ] || wrong "one layer, or all, and nothing after it: '$3' is too much."
case $1 in
status | build | optimize | validate | report | clean) ;;
*) wrong "'$1' is not a verb." ;;
esac

here=$(CDPATH='' cd -P -- "$(dirname -- "$0")" && pwd -P)
case ${2-all} in
all) exec "$here/run-task.sh" manage-layers.sh "$1" ;;
-*) wrong "'$2' is neither all nor the name of a layer; flags are for scripts/inv $1." ;;
*) exec "$here/run-task.sh" manage-layers.sh "$1" "--layer=$2" ;;
esac
