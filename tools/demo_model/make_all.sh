#!/usr/bin/env bash
# Trains the demo model and makes everything in this folder that is made: checkpoint/, held_out.jsonl
# and results/. Stopped and started again, the training goes on from its last state in WORK_DIR.
#   tools/demo_model/make_all.sh [WORK_DIR]     WORK_DIR defaults to build/demo_model
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
work=${1:-$root/build/demo_model}
venv=$root/build/venv_demo_model
mkdir -p "$work"

if ! cmp -s "$here/requirements.txt" "$venv/installed.txt"; then
  python3 -m venv "$venv"
  "$venv/bin/pip" install --quiet --requirement "$here/requirements.txt"
  cp "$here/requirements.txt" "$venv/installed.txt"
fi
python=$venv/bin/python

# Keeps freed memory: torch allocates the same large buffers in every step, and pages fresh from the
# kernel would cost a third of the time.
export MALLOC_MMAP_THRESHOLD_=8589934592 MALLOC_TRIM_THRESHOLD_=17179869184
export MALLOC_TOP_PAD_=268435456 GLIBC_TUNABLES=glibc.malloc.hugetlb=1
# torch's MKL takes its AVX kernels only where this function says that the processor is Intel's; on
# AMD's the products are twice as fast with them.
if grep -q AuthenticAMD /proc/cpuinfo; then
  echo 'int mkl_serv_intel_cpu_true(void) { return 1; }' |
    cc -shared -fPIC -x c - -o "$work/mkl_on_amd.so"
  export LD_PRELOAD=$work/mkl_on_amd.so
fi

"$python" "$here/make_tokenizer.py" "$here/checkpoint"
"$python" "$here/train.py" --work "$work"
"$python" "$here/export.py" "$work/state.pt" "$here/checkpoint"
"$python" "$here/compare_hf.py" "$here/checkpoint" "$work/state.pt"
"$python" "$here/generate.py" > "$here/held_out.jsonl"
"$python" "$here/plot.py" "$work" "$here/results"
