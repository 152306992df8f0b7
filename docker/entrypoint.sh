#!/bin/sh
# Entrypoint of the container.
#
#   (no argument)   serve MOLEFLOW_CHECKPOINT, or the newest *.safetensors in /models, or the newest exported folder there,
#                   or a newly trained demo checkpoint
#   ARGUMENTS       moleflow ARGUMENTS, such as: train /data --task bottle --checkpoint /models/factory.safetensors
#
# The server and the commands replace this shell (exec), so that they receive the container's signals.
set -eu

if [ "$#" -gt 0 ]; then
    exec moleflow "$@"
fi

models=${MOLEFLOW_MODELS:-/models}

# The newest of the files.
newest_of() {
    newest=
    for file in "$@"; do
        if [ -f "$file" ] && { [ -z "$newest" ] || [ "$file" -nt "$newest" ]; }; then
            newest=$file
        fi
    done
    printf '%s' "$newest"
}

# Trained in a separate directory and moved when complete: an interrupted start never leaves a partial checkpoint to be
# served, and the next start continues the training.
train_demo() {
    [ -w "$models" ] || {
        echo "moleflow: $models contains no checkpoint, and user $(id -u) may not write there. Mount a volume with a" \
            "checkpoint, or one that this user may write to (chown it to $(id -u))." >&2
        exit 1
    }
    echo "moleflow: $models contains no checkpoint; training a demo checkpoint, which takes a minute or two" >&2
    moleflow demo --no-serve --directory "$models/demo" &
    trainer=$!
    trap 'kill -TERM "$trainer" 2>/dev/null || true; wait "$trainer" || true; exit 143' TERM INT
    wait "$trainer" || exit
    trap - TERM INT
    mv "$models/demo/demo.safetensors" "$models/demo.safetensors"
}

checkpoint=${MOLEFLOW_CHECKPOINT:-}
if [ -z "$checkpoint" ]; then
    checkpoint=$(newest_of "$models"/*.safetensors)
    if [ -z "$checkpoint" ]; then
        checkpoint=$(newest_of "$models"/*/manifest.json)
        checkpoint=${checkpoint%/manifest.json}
    fi
    if [ -z "$checkpoint" ]; then
        train_demo
        checkpoint=$models/demo.safetensors
    fi
fi
echo "moleflow: serving $checkpoint" >&2
exec moleflow serve "$checkpoint"
