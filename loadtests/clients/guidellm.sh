#!/bin/sh
# guidellm, streamed completions: guidellm.sh URL MODEL FOLDER_OF_ITS_TOKENIZER
set -eu
guidellm run --backend "kind=openai_http,target=$1,model=$2,request_format=/v1/completions" \
    --tokenizer "kind=huggingface_auto,model=$3" --data kind=synthetic_text,prompt_tokens=32,output_tokens=12 \
    --profile kind=concurrent,streams=2 --constraint kind=max_requests,count=12 --disable-progress
