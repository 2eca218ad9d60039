#!/usr/bin/env bash
# What no other test can try: the layer on a real GPU, beside the CPU. Needs the packages of requirements.txt, a PyTorch
# with CUDA, and no network. `bash tests/gpu.sh` takes some minutes; its last line says whether everything agreed.
set -euo pipefail
cd "$(dirname "$0")/.."
export HF_HUB_OFFLINE=1 PYTHONUNBUFFERED=1
PYTHON=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}
"$PYTHON" tests/gpu_check.py "$@"
