#!/bin/sh
# Installs what `make bench-serving` needs beside the Python environment: wrk, the load generator, from Debian.
set -eu
if command -v wrk >/dev/null; then
    echo "wrk is there: $(command -v wrk)"
    exit 0
fi
as_root=""
if [ "$(id -u)" -ne 0 ]; then
    command -v sudo >/dev/null || { echo "Run this as root: it installs a Debian package." >&2; exit 1; }
    as_root=sudo
fi
$as_root apt-get update -q
$as_root apt-get install -y -q --no-install-recommends wrk
