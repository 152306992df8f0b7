#!/bin/sh
# Makes the virtual environment of the baselines, separate from MoLE-Flow's own, or brings it up to date.
#
#   sh benchmarks/baselines/setup.sh DIRECTORY
#
# PYTHON, TORCH and TORCH_INDEX_URL mean what `make help` says. For baseline_speed, give TORCH the release of
# MoLE-Flow's own environment: it refuses to compare two releases. The file .moleflow-made marks the environment as ours,
# so that `make clean` may remove it.
set -eu
exec 1>&2

here=$(cd "$(dirname "$0")" && pwd)
[ $# -eq 1 ] || {
    echo "usage: sh $0 DIRECTORY"
    exit 2
}
venv=$1
# Ours, but interrupted before it had pip: start again.
if [ -e "$venv/.moleflow-made" ] && ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
    rm -rf "$venv"
fi
if [ ! -e "$venv/bin/python" ]; then
    [ -z "$(ls -A "$venv" 2>/dev/null)" ] || {
        echo "setup: $venv holds files but no bin/python; give an environment or a new name."
        exit 1
    }
    "${PYTHON:-python3}" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
        echo "setup: ${PYTHON:-python3} is no Python 3.11 or newer; name one with PYTHON=FILE."
        exit 1
    }
    mkdir -p "$venv"
    : >"$venv/.moleflow-made"
    # Debian has venv's pip in a separate package; without it, use the interpreter's pip.
    if "${PYTHON:-python3}" -c 'import ensurepip' 2>/dev/null; then
        "${PYTHON:-python3}" -m venv "$venv"
    else
        "${PYTHON:-python3}" -m venv --without-pip "$venv"
        "${PYTHON:-python3}" -m pip --python "$venv/bin/python" install pip
    fi
fi

# Each word is one requirement: split them, but do not glob.
set -f
# shellcheck disable=SC2086
"$venv/bin/python" -m pip install ${TORCH_INDEX_URL:+--index-url "$TORCH_INDEX_URL"} ${TORCH:-torch>=2.6 torchvision}
"$venv/bin/python" -m pip install --requirement "$here/requirements.txt"
# Both sides use MoLE-Flow's data sets and metrics; its own requirements are not installed.
"$venv/bin/python" -m pip install --no-deps --editable "$here/../.."
echo "setup: $venv is ready"
