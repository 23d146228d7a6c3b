#!/bin/sh
# Compile the hash-locked requirements. Run after a change of dependencies; needs uv.
set -eu
cd "$(dirname "$0")/../.."
uv=${UV:-.venv/bin/uv}
common="--generate-hashes --no-emit-index-url --no-emit-find-links --no-annotate --no-header -q -p 3.11"
"$uv" pip compile pyproject.toml --extra dev --extra encoder --universal $common \
    --override deploy/requirements/gateway-overrides.txt -o deploy/requirements/gateway.lock
# What runs in production: the same versions, without what only tests need.
"$uv" pip compile pyproject.toml --extra encoder --extra postgres --extra distill --extra otel --universal $common \
    --override deploy/requirements/gateway-overrides.txt -c deploy/requirements/gateway.lock \
    -o deploy/requirements/runtime.lock
"$uv" pip compile deploy/requirements/bootstrap.in $common -o deploy/requirements/bootstrap.lock
"$uv" pip compile deploy/requirements/clients.in $common -o deploy/requirements/clients.lock
UV_FIND_LINKS="${PIP_FIND_LINKS:-}" "$uv" pip compile deploy/requirements/student.in $common \
    --override deploy/requirements/student-overrides.txt -o deploy/requirements/student.lock
# torch comes first and by itself: its CPU build is another file than the registry's.
awk '/^[a-z]/ {skip = /^torch==/} !skip' deploy/requirements/student.lock > student.lock.tmp
mv student.lock.tmp deploy/requirements/student.lock
