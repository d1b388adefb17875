#!/usr/bin/env bash
# The one-tower net of PyTorch's tutorials, ten epochs of 10,000 pictures resized to 227 inside the model. About 40
# minutes on two cores.
#
#   examples/pytorch_tutorial.sh OUT               10,000 pictures of Fashion-MNIST, fetched
#   examples/pytorch_tutorial.sh OUT CIFAR         a folder of CIFAR-10's binary files: 10,000 of theirs
set -euo pipefail
out=$(realpath -m "${1:?name a folder for the results}") source=${2:-}
cd "$(dirname "$0")/.."
if [ -z "$source" ]; then
    source=$out/fashion-mnist
    python -m pipeline.fetch fashion-mnist "$source"
fi
python -m pipeline.shard "$source" "$out/dataset" --val-last 2000 --max-train-samples 10000
python jobs/train.py --data "$out/dataset" --run "$out/run" --recipe cifar_tutorial --workers 1
python jobs/evaluate.py --data "$out/dataset" --run "$out/run"
python jobs/curves.py "$out/run" --out "$out/curves.png"
