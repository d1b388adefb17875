#!/usr/bin/env bash
# AlexNet for pictures of 28x28 as TensorFlow's tutorials write it: Adam, batch 64, the last 2,000 training pictures as
# validation. About 25 minutes on two cores.
#
#   examples/tensorflow_tutorial.sh OUT            Fashion-MNIST, fetched
#   examples/tensorflow_tutorial.sh OUT MNIST      a folder of MNIST's four IDX files
set -euo pipefail
out=$(realpath -m "${1:?name a folder for the results}") source=${2:-}
cd "$(dirname "$0")/.."
if [ -z "$source" ]; then
    source=$out/fashion-mnist
    python -m pipeline.fetch fashion-mnist "$source"
fi
python -m pipeline.shard "$source" "$out/dataset" --val-last 2000
python jobs/train.py --data "$out/dataset" --run "$out/run" --recipe mnist_tutorial --workers 1
python jobs/evaluate.py --data "$out/dataset" --run "$out/run"
python jobs/curves.py "$out/run" --out "$out/curves.png"
