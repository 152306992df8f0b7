#!/bin/sh
# Makes the virtual environment that the peers run in, apart from MoLE-Flow's own. Again on the same DIRECTORY: brings it up to date.
#
#   sh benchmarks/peers/setup.sh DIRECTORY
#
# PYTHON, TORCH and TORCH_INDEX_URL mean what `make help` says. For speed.py, give TORCH the release that MoLE-Flow's
# own environment has: times of two releases cannot be compared, and speed.py refuses to. What this makes gets the file
# .moleflow-made, by which `make clean` knows that it may be removed.
set -eu
exec 1>&2

here=$(cd "$(dirname "$0")" && pwd)
[ $# -eq 1 ] || {
    echo "usage: sh $0 DIRECTORY"
    exit 2
}
venv=$1
# Ours, and interrupted before it had pip: from the start.
if [ -e "$venv/.moleflow-made" ] && ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
    rm -rf "$venv"
fi
if [ ! -e "$venv/bin/python" ]; then
    [ -z "$(ls -A "$venv" 2>/dev/null)" ] || {
        echo "setup: $venv holds files, but no bin/python; give an environment or a new name."
        exit 1
    }
    "${PYTHON:-python3}" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
        echo "setup: ${PYTHON:-python3} is no Python 3.11 or newer; name one with PYTHON=FILE."
        exit 1
    }
    mkdir -p "$venv"
    : >"$venv/.moleflow-made"
    # Debian splits venv's pip off into a package of its own; without it, the pip beside the interpreter does as well.
    if "${PYTHON:-python3}" -c 'import ensurepip' 2>/dev/null; then
        "${PYTHON:-python3}" -m venv "$venv"
    else
        "${PYTHON:-python3}" -m venv --without-pip "$venv"
        "${PYTHON:-python3}" -m pip --python "$venv/bin/python" install pip
    fi
fi

# One requirement a word, given to pip as its arguments: the splitting is meant, the globbing is not.
set -f
# shellcheck disable=SC2086
"$venv/bin/python" -m pip install ${TORCH_INDEX_URL:+--index-url "$TORCH_INDEX_URL"} ${TORCH:-torch>=2.6 torchvision}
"$venv/bin/python" -m pip install --requirement "$here/requirements.txt"
# Data sets and metrics are MoLE-Flow's, so that both sides are measured by the same code. Its own requirements stay out.
"$venv/bin/python" -m pip install --no-deps --editable "$here/../.."
echo "setup: $venv is ready"
