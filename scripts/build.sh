#!/bin/sh
# The guide's build of all layers: inv build.
set -eu

usage() {
    cat <<'END'
Usage: build.sh [--layers-only] [--verbose] [--skip-validation]

  --layers-only       build the layers; that is all this script builds, with or without it
  --verbose           say more on the way
  --skip-validation   let the layers in without checking them (not recommended)
END
}

# Each flag is taken off the front; those for the task are put on again at the end.
for word in "$@"; do
    shift
    case $word in
    -h | --help)
        usage
        exit 0
        ;;
    --layers-only) ;;
    --verbose | --skip-validation) set -- "$@" "$word" ;;
    *)
        echo "build.sh: '$word' is not a flag of this script." >&2
        usage >&2
        exit 2
        ;;
    esac
done

here=$(CDPATH='' cd -P -- "$(dirname -- "$0")" && pwd -P)
exec "$here/run-task.sh" build.sh build "$@"
