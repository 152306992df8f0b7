#!/bin/sh
# What the container runs.
#
#   (no argument)   serve MOLEFLOW_CHECKPOINT; else the newest *.safetensors in /models; else train the demo one first
#   ARGUMENTS       moleflow ARGUMENTS, such as: train /data --task bottle --checkpoint /models/factory.safetensors
#
# The server and the commands replace this shell, so the container's signals reach them.
set -eu

if [ "$#" -gt 0 ]; then
    exec moleflow "$@"
fi

models=${MOLEFLOW_MODELS:-/models}

newest_checkpoint() {
    newest=
    for file in "$models"/*.safetensors; do
        if [ -f "$file" ] && { [ -z "$newest" ] || [ "$file" -nt "$newest" ]; }; then
            newest=$file
        fi
    done
    printf '%s' "$newest"
}

# Trained in a directory of its own and moved when it is whole: a start that was cut short never leaves a checkpoint
# with some of the products to be served, and the next start goes on where this one was.
train_demo() {
    [ -w "$models" ] || {
        echo "moleflow: $models holds no checkpoint, and user $(id -u) may not write one there. Mount a volume that it may" \
            "write to (chown it to $(id -u)), or one with a checkpoint." >&2
        exit 1
    }
    echo "moleflow: $models holds no checkpoint; training the demo one, which takes a minute or two" >&2
    moleflow demo --no-serve --directory "$models/demo" &
    trainer=$!
    trap 'kill -TERM "$trainer" 2>/dev/null || true; wait "$trainer" || true; exit 143' TERM INT
    wait "$trainer" || exit
    trap - TERM INT
    mv "$models/demo/demo.safetensors" "$models/demo.safetensors"
}

checkpoint=${MOLEFLOW_CHECKPOINT:-}
if [ -z "$checkpoint" ]; then
    checkpoint=$(newest_checkpoint)
    if [ -z "$checkpoint" ]; then
        train_demo
        checkpoint=$models/demo.safetensors
    fi
fi
echo "moleflow: serving $checkpoint" >&2
exec moleflow serve "$checkpoint"
