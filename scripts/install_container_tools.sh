#!/usr/bin/env bash
# Installs what `make test-container` needs on Debian: a Docker daemon, and mmdebstrap for a base image without a
# registry of images. Run as root.
set -euo pipefail

if command -v dockerd >/dev/null && command -v mmdebstrap >/dev/null; then
  exit 0
fi
apt-get update -qq
DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends docker.io mmdebstrap
