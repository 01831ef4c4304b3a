#!/bin/sh
# A shell worker: any program can do jobs. jqctl leases them, extends their leases, and tells jqd how each ended.
#
#   jqctl work checksums --exec './checksum.sh {}' -j 4 --limit 1m
#   jqctl submit checksums /etc/hostname
#   jqctl job JOB_ID                            its result is what this printed
#
# {} is the payload, as one argument: no shell sees it, whatever is in it. The exit code decides:
set -eu

file=$1
[ -e "$file" ] || { echo "$file: no such file" >&2; exit 65; } # dead at once: no retry would help
[ ! -e "$file.part" ] || exit 75                                # still being written: later, and it costs no attempt
exec sha256sum -- "$file"                                       # 0: done; anything else: an error, tried again
