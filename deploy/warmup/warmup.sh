#!/bin/sh
# Sends a new replica its first requests, then opens the gate: touches WARMUP_SIGNAL.
# Needs sh, and curl or python3. The gate opens after WARMUP_TIMEOUT_S whatever happens.
set -u

# Where the replica answers.
url="${WARMUP_URL:-http://127.0.0.1:8000}"
# Served model; empty asks /v1/models for the first one.
model="${WARMUP_MODEL:-}"
# File with the number of requests (the mounted ConfigMap); absent or no number: none are sent.
count_file="${WARMUP_REQUESTS_FILE:-/etc/tuner-warmup/warmup_requests}"
# The gate. It holds one line: how many requests went well, or "timed out".
signal="${WARMUP_SIGNAL:-/var/run/tuner-warmup/warm}"
# Seconds until the gate opens anyway, waiting for the engine included.
timeout_s="${WARMUP_TIMEOUT_S:-900}"
# Prompt sizes in words, used in turn.
sizes="${WARMUP_SIZES:-8 128 1024}"
# Tokens that each request asks for.
output_tokens="${WARMUP_OUTPUT_TOKENS:-16}"
# Requests sent at once, so that batches larger than one are warm too.
concurrency="${WARMUP_CONCURRENCY:-4}"
# Longest wait for one request, s.
request_timeout_s="${WARMUP_REQUEST_TIMEOUT_S:-120}"
# File with the key of the serving port, if it has one.
key_file="${WARMUP_API_KEY_FILE:-}"
# 1: stay alive afterwards, as a container beside the engine must.
stay="${WARMUP_STAY:-0}"

began_s=$(date +%s)
answered=$(mktemp) || exit 1
trap 'rm -f "$answered"' EXIT

say() { echo "warmup: $*" >&2; }

left_s() { echo $((timeout_s - ($(date +%s) - began_s))); }

# fetch PATH SECONDS [BODY]: the answer on stdout; fails unless the status is a good one.
# The key goes in through standard input, so that no process list shows it.
fetch() {
    key=""
    [ -n "$key_file" ] && [ -r "$key_file" ] && key=$(cat "$key_file")
    if command -v curl >/dev/null 2>&1; then
        set -- "$1" "$2" "${3:-}"
        {
            [ -n "$key" ] && printf 'header = "Authorization: Bearer %s"\n' "$key"
            [ -n "$3" ] && printf 'header = "Content-Type: application/json"\n'
            :
        } | if [ -n "$3" ]; then
            curl -sf -m "$2" -K - -d "$3" "$url$1"
        else
            curl -sf -m "$2" -K - "$url$1"
        fi
    else
        printf '%s' "$key" | python3 -c '
import sys, urllib.request
url, seconds, body = sys.argv[1], float(sys.argv[2]), sys.argv[3]
headers = {"Content-Type": "application/json"}
key = sys.stdin.read()
if key:
    headers["Authorization"] = "Bearer " + key
request = urllib.request.Request(url, body.encode() if body else None, headers)
try:
    with urllib.request.urlopen(request, timeout=seconds) as answer:
        sys.stdout.write(answer.read().decode())
except OSError:
    sys.exit(1)
' "$url$1" "$2" "${3:-}"
    fi
}

# within SECONDS: the smaller of SECONDS and what is left, at least 1.
within() {
    left=$(left_s)
    [ "$left" -lt "$1" ] && set -- "$left"
    [ "$1" -lt 1 ] && set -- 1
    echo "$1"
}

words() {
    i=0
    text=""
    while [ "$i" -lt "$1" ]; do
        # Counting up keeps a prefix cache from making the next request of this size free.
        text="$text $2x$i"
        i=$((i + 1))
    done
    echo "$text"
}

ask() {
    body="{\"model\": \"$model\", \"prompt\": \"$(words "$1" "$2")\", \
\"max_tokens\": $output_tokens, \"temperature\": 0}"
    fetch /v1/completions "$(within "$request_timeout_s")" "$body" >/dev/null && echo "$2" >>"$answered"
}

first_model() {
    fetch /v1/models "$(within 10)" | tr ',{' '\n\n' | sed -n 's/^ *"id" *: *"\(.*\)".*/\1/p' | head -n 1
}

open_gate() {
    say "$1"
    mkdir -p "$(dirname "$signal")"
    echo "$1" >"$signal.part" && mv "$signal.part" "$signal"
}

warm_up() {
    count=$(tr -d ' \n' 2>/dev/null <"$count_file" || echo 0)
    case "$count" in '' | *[!0-9]*) say "no number in $count_file"; count=0 ;; esac
    if [ "$count" -eq 0 ]; then
        open_gate "no requests asked for"
        return
    fi
    until fetch /health "$(within 5)" >/dev/null; do
        if [ "$(left_s)" -le 0 ]; then
            open_gate "timed out: the replica was never healthy"
            return
        fi
        sleep 1
    done
    [ -n "$model" ] || model=$(first_model)
    sent=0
    while [ "$sent" -lt "$count" ]; do
        for size in $sizes; do
            batch=0
            while [ "$batch" -lt "$concurrency" ] && [ "$sent" -lt "$count" ]; do
                sent=$((sent + 1))
                batch=$((batch + 1))
                ask "$size" "$sent" &
            done
            wait
            if [ "$(left_s)" -le 0 ]; then
                open_gate "timed out after $(wc -l <"$answered" | tr -d ' ') of $count requests"
                return
            fi
        done
    done
    open_gate "$(wc -l <"$answered" | tr -d ' ') of $count requests answered"
}

rm -f "$signal"
warm_up
if [ "$stay" = 1 ]; then
    # A signal ends the wait at once, so that the pod does not linger.
    trap 'exit 0' TERM INT
    while :; do
        sleep 3600 &
        wait $!
    done
fi
