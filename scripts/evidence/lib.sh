# Sourced by the studies: settle on a Python, and do every stage once.
#
# A stage that has ended well leaves a stamp in $OUT/done, so a study that was stopped goes on where
# it was. Studies take one core each and give way to other work.
source "$(dirname "${BASH_SOURCE[0]}")/../env.sh"
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-passive}
renice -n 10 -p $$ >/dev/null
RESULTS=${RESULTS:-docs/evidence}

once() { # once STAGE COMMAND...: run the command unless it has ended well before
    local stage=$1 started=$SECONDS
    shift
    [ -e "$OUT/done/$stage" ] && return
    mkdir -p "$OUT/done" "$RESULTS"
    printf '\n== %s\n' "$stage" >&2
    "$@"
    echo "$((SECONDS - started)) s" >"$OUT/done/$stage"
}

cache() { # cache FOLDER NAME: tokens of an image folder
    "$PYTHON" main_cache.py --data_path "$1" --img_size $SIZE --vqgan_path "$OUT/tokenizer/vq.pt" \
        --cached_path "$OUT/$2" --device cpu --num_workers 0
}
