#!/usr/bin/env bash
# Builds the endpoint's image: a bento of the code and of the locked packages, then serving/Dockerfile over it.
#
#   scripts/build_image.sh [TAG]        churn-endpoint and the version in pyproject.toml, unless said otherwise
#
# Read from the environment: PYTHON (with BentoML installed), BASE_IMAGE, DOCKER_BUILD_OPTIONS (words for
# `docker build`), and pip's own PIP_CONFIG_FILE and PIP_CERT, for a package index that asks for them.
set -euo pipefail
cd "$(dirname "$0")/.."

tag=${1:-churn-endpoint:$(sed -n 's/^version = "\(.*\)"$/\1/p' pyproject.toml)}
python=${PYTHON:-.venv/bin/python}
BENTOML_HOME=$(mktemp -d)
trap 'rm -rf "$BENTOML_HOME"' EXIT
export BENTOML_HOME BENTOML_DO_NOT_TRACK=True DOCKER_BUILDKIT=1

"$python" -m bentoml build --bentofile serving/bentofile.yaml --output tag . >/dev/null
bento=$("$python" -m bentoml get churn_service:latest --output path)

options=()
if [ -n "${PIP_CONFIG_FILE:-}" ]; then options+=(--secret "id=pip_conf,src=$PIP_CONFIG_FILE"); fi
if [ -n "${PIP_CERT:-}" ]; then options+=(--secret "id=pip_cert,src=$PIP_CERT"); fi
if [ -n "${BASE_IMAGE:-}" ]; then options+=(--build-arg "BASE_IMAGE=$BASE_IMAGE"); fi
read -ra more <<<"${DOCKER_BUILD_OPTIONS:-}"
docker build --file serving/Dockerfile --tag "$tag" "${options[@]}" "${more[@]}" "$bento"
