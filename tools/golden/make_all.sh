#!/usr/bin/env bash
# Makes everything under tests/golden/ anew: the tiny model, its tokenizer, and what Hugging Face
# transformers and tokenizers answer for them. See README.md beside this file.
#   tools/golden/make_all.sh [OUT_DIR]     OUT_DIR defaults to tests/golden
set -euo pipefail

tools=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$tools/../.." && pwd)
out=${1:-$root/tests/golden}
venv=$root/build/venv

if ! cmp -s "$tools/requirements.txt" "$venv/installed.txt"; then
  python3 -m venv "$venv"
  "$venv/bin/pip" install --quiet --requirement "$tools/requirements.txt"
  cp "$tools/requirements.txt" "$venv/installed.txt"
fi

python=$venv/bin/python
mkdir -p "$out/tiny"
"$python" "$tools/make_tokenizer.py" "$out/tiny"
"$python" "$tools/make_model.py" "$out/tiny"
"$python" "$tools/make_golden.py" "$out/tiny"
"$python" "$tools/make_tokenizer_vectors.py" "$out/tiny" "$out"
"$python" "$tools/make_added_token_vectors.py" "$out/tiny" "$out"
