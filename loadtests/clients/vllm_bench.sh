#!/bin/sh
# The module of `vllm bench serve`, streamed completions: vllm_bench.sh URL MODEL FOLDER_OF_ITS_TOKENIZER
set -eu
exec python - "$@" <<'END'
import argparse
import sys

from vllm.benchmarks.serve import add_cli_args, main

url, model, tokenizer = sys.argv[1:4]
parser = argparse.ArgumentParser()
add_cli_args(parser)
options = f"--backend openai --base-url {url} --endpoint /v1/completions --model {model} --tokenizer {tokenizer}"
options += " --dataset-name random --random-input-len 32 --random-output-len 12 --num-prompts 12 --max-concurrency 2"
main(parser.parse_args(options.split()))
END
