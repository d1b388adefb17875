#!/usr/bin/env bash
# What dropout is worth: the same net with it and without, on 5,000 pictures of Fashion-MNIST, where it overfits. About 5
# minutes on two cores.
#
#   examples/dropout.sh OUT
set -euo pipefail
out=$(realpath -m "${1:?name a folder for the results}")
cd "$(dirname "$0")/.."
python -m pipeline.fetch fashion-mnist "$out/fashion-mnist"
python -m pipeline.shard "$out/fashion-mnist" "$out/dataset" --val-last 5000 --max-train-samples 5000
for probability in 0.5 0; do
    python jobs/train.py --data "$out/dataset" --run "$out/dropout-$probability" --recipe small_demo --workers 1 \
        --model.dropout "$probability" --optimizer.learning-rate 0.02 --num-epochs 30 \
        --augmentation.no-flip --augmentation.color-noise-sigma 0 --augmentation.crop-fraction 1
    python jobs/evaluate.py --data "$out/dataset" --run "$out/dropout-$probability"
done
python jobs/curves.py "$out/dropout-0.5" "$out/dropout-0" --labels "dropout 0.5" "no dropout" --out "$out/curves.png"
