#!/bin/sh
# What the guide's scripts end with: run-task.sh SCRIPT TASK [FLAG...] becomes that task of scripts/inv, with its exit
# code. The tasks are asked for, not listed here: a task that does not exist yet is said to be missing, exit code 2.
set -eu

here=$(CDPATH='' cd -P -- "$(dirname -- "$0")" && pwd -P)
script=$1
task=$2
shift

tasks=$("$here/inv" --list) || exit $?
case "$tasks " in
*"
  $task "*) exec "$here/inv" "$@" ;;
esac
echo "$script: there is no task '$task' yet." >&2
echo "The tasks that there are: scripts/inv --list" >&2
exit 2
