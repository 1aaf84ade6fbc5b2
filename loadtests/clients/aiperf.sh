#!/bin/sh
# aiperf, streamed completions: aiperf.sh URL MODEL FOLDER_OF_ITS_TOKENIZER
set -eu
artifacts=$(mktemp -d)
trap 'rm -rf "$artifacts"' EXIT
aiperf profile --model "$2" --url "$1" --endpoint-type completions --streaming --tokenizer "$3" --concurrency 2 \
    --request-count 12 --synthetic-input-tokens-mean 32 --output-tokens-mean 12 --ui none --artifact-dir "$artifacts"
