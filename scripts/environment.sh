#!/bin/sh
# Creates or updates the virtual environment of the Makefile's targets. Prints to standard error only.
#
#   sh scripts/environment.sh DIRECTORY [EXTRA]
#
# Reads PYTHON, TORCH and TORCH_INDEX_URL, which `make help` explains, and CONSTRAINTS, a constraints file for pip. Two
# files in DIRECTORY record its state:
#   .moleflow-made    written first: this script created the environment, so it may delete and recreate it
#   .moleflow-stamp   written last, removed before pip starts: what was installed, and for which checkout
# An environment of ours without a stamp was interrupted and is recreated.
set -eu
exec 1>&2

cd "$(dirname "$0")/.."
venv=$1
extra=${2:-}
made=$venv/.moleflow-made
stamp=$venv/.moleflow-stamp
torch=${TORCH:-torch torchvision}
facts="project=$PWD requirements=$(cksum <pyproject.toml) torch=$torch $(printenv TORCH_INDEX_URL || true)"
[ -z "${CONSTRAINTS:-}" ] || facts="$facts constraints=$(cksum <"$CONSTRAINTS")"

fail() {
    echo "environment: $*"
    exit 1
}

is_new_enough() {
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}

# An environment with the development extra serves the runtime too, and one with Ray beside it serves both.
is_current() {
    [ -f "$stamp" ] && "$venv/bin/python" -c '' 2>/dev/null || return 1
    found=$(cat "$stamp")
    [ "$found" = "$facts extra=$extra" ] || [ "$found" = "$facts extra=dev-ray" ] ||
        { [ "$extra" != dev-ray ] && [ "$found" = "$facts extra=dev" ]; }
}

choose_python() {
    if [ -n "${PYTHON:-}" ]; then
        "$PYTHON" -c '' 2>/dev/null || fail "PYTHON=$PYTHON cannot be run; give the path of Python 3.11 or newer."
        is_new_enough "$PYTHON" || fail "PYTHON=$PYTHON is $("$PYTHON" --version 2>&1); MoLE-Flow needs 3.11 or newer."
        echo "$PYTHON" >&3
        return
    fi
    for candidate in python3.11 python3 python3.12 python3.13 python3.14; do
        if is_new_enough "$candidate"; then
            echo "$candidate" >&3
            return
        fi
    done
    fail "no Python 3.11 or newer found in PATH; install one, or give its path: make TARGET PYTHON=/path/to/python3.11"
}

# Debian packages ensurepip separately; without it, the interpreter's own pip is used.
make_venv() {
    python=$(choose_python 3>&1 1>&2)
    echo "environment: creating $venv with $python"
    mkdir -p "$venv"
    : >"$made"
    find "$venv" -mindepth 1 -maxdepth 1 ! -name "${made##*/}" -exec rm -rf {} +
    if "$python" -c 'import ensurepip' 2>/dev/null; then
        "$python" -m venv "$venv"
    else
        "$python" -m venv --without-pip "$venv"
        "$python" -m pip --python "$venv/bin/python" install pip
    fi
}

is_current && exit 0

if [ -f "$made" ]; then
    { [ -f "$stamp" ] && "$venv/bin/python" -c '' 2>/dev/null; } || make_venv
elif [ ! -e "$venv/bin/python" ]; then
    [ -z "$(ls -A "$venv" 2>/dev/null)" ] || fail "VENV=$venv contains files, but no bin/python; choose an environment or a new path."
    make_venv
fi

is_new_enough "$venv/bin/python" ||
    fail "$venv has $("$venv/bin/python" --version 2>&1); MoLE-Flow needs 3.11 or newer. Remove it or choose another VENV."
"$venv/bin/python" -m pip --version >/dev/null 2>&1 || fail "$venv has no working pip. Remove it or choose another VENV."

rm -f "$stamp"
echo "environment: installing $torch, then the dependencies in pyproject.toml${extra:+, with extra $extra}"
# Each word of $torch is one requirement, so it is split but not globbed.
set -f
# shellcheck disable=SC2086
"$venv/bin/python" -m pip install ${TORCH_INDEX_URL:+--index-url "$TORCH_INDEX_URL"} \
    ${CONSTRAINTS:+--constraint "$CONSTRAINTS"} $torch
"$venv/bin/python" -m pip install ${CONSTRAINTS:+--constraint "$CONSTRAINTS"} --editable ".${extra:+[$extra]}"
echo "$facts extra=$extra" >"$stamp"
