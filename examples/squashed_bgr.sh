#!/usr/bin/env bash
# The two-tower net without normalisation, on pictures squashed to 227x227 with their mean colour subtracted and the
# channels in Caffe's order, blue first; then a figure of its five best guesses. Five epochs of 4,160 photographs take
# about 6 minutes on two cores.
#
#   examples/squashed_bgr.sh OUT PHOTOS            PHOTOS: class folders, train/CLASS/* and val/CLASS/*
set -euo pipefail
out=$(realpath -m "${1:?name a folder for the results}")
photos=$(realpath "${2:?name a folder of pictures in class folders, train/CLASS/* and val/CLASS/*}")
cd "$(dirname "$0")/.."
python -m pipeline.shard "$photos" "$out/dataset" --size 227 --crop squash
python jobs/train.py --data "$out/dataset" --run "$out/run" --recipe caffe_alexnet --workers 1 \
    --model.normalization none --model.initialization kaiming --augmentation.subtract mean --augmentation.divide-by-std \
    --global-batch-size 32 --num-epochs 5 --optimizer.learning-rate 0.003
python jobs/evaluate.py --data "$out/dataset" --run "$out/run"
mapfile -t pictures < <(find "$photos/val" -type f | sort | awk 'NR % 61 == 1' | head -8)
python jobs/predict.py "${pictures[@]}" --run "$out/run" --figure "$out/predictions.png"
