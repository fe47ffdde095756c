#!/bin/sh
# Puts Debian's prometheus, promtool and kubectl under target/tools, without installing them: the
# packages are unpacked there, no service is started, nothing outside the checkout changes.
# Programs that are on the PATH already are used as they are.
set -eu
cd "$(dirname "$0")/../.."
tools=target/tools
mkdir -p "$tools/bin"

have() { [ -x "$tools/bin/$1" ] || command -v "$1" >/dev/null 2>&1; }

fetch() { # package, then the programs wanted of it
    package=$1
    shift
    missing=""
    for program in "$@"; do have "$program" || missing="$missing $program"; done
    [ -n "$missing" ] || return 0
    if ! command -v apt-get >/dev/null 2>&1 || ! command -v dpkg-deb >/dev/null 2>&1; then
        echo "missing:$missing. This is no Debian: install them from https://prometheus.io/download/ and" \
             "https://kubernetes.io/docs/tasks/tools/ so that they are on the PATH" >&2
        exit 1
    fi
    work=$(mktemp -d)
    if ! (cd "$work" && apt-get -q download "$package" >/dev/null 2>&1); then
        # No package lists yet: a new machine or container.
        if [ "$(id -u)" = 0 ]; then apt-get -q update >/dev/null
        elif command -v sudo >/dev/null 2>&1; then sudo apt-get -q update >/dev/null
        fi
        if ! (cd "$work" && apt-get -q download "$package" >/dev/null); then
            echo "missing:$missing, and 'apt-get download $package' failed. As root, run:" \
                 "apt-get update && apt-get install $package" >&2
            exit 1
        fi
    fi
    dpkg-deb -x "$work"/*.deb "$tools/root"
    rm -rf "$work"
    for program in "$@"; do
        [ -x "$tools/root/usr/bin/$program" ] && ln -sf "../root/usr/bin/$program" "$tools/bin/$program"
    done
}

fetch prometheus prometheus promtool
fetch kubernetes-client kubectl
