#!/bin/sh
# Unpack Debian's prometheus (with promtool) into a folder, without installing it and without root.
# What PATH has already is taken instead.
set -eu
out=$1
mkdir -p "$out/usr/bin"
if command -v prometheus >/dev/null && command -v promtool >/dev/null; then
    ln -sf "$(command -v prometheus)" "$(command -v promtool)" "$out/usr/bin/"
    exit 0
fi
command -v apt-get >/dev/null || {
    echo "make: no prometheus and promtool on PATH, and no apt-get to fetch them with" >&2
    exit 1
}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/lists/partial" "$work/archives/partial"
# Lists of our own: the machine's may be missing, old or not ours to write.
options="-qq -o Dir::State::Lists=$work/lists -o Dir::Cache=$work -o Dir::Cache::archives=$work/archives"
[ "$(id -u)" != 0 ] || options="$options -o APT::Sandbox::User=root"
apt-get $options update
(cd "$work" && apt-get $options download prometheus)
dpkg-deb -x "$work"/prometheus_*.deb "$out"
