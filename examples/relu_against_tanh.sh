#!/usr/bin/env bash
# ReLU against tanh, as figure 1 of the 2012 paper: the samples that each takes to the same training error, each at the
# better of two learning rates. About 6 minutes on two cores.
#
#   examples/relu_against_tanh.sh OUT
set -euo pipefail
out=$(realpath -m "${1:?name a folder for the results}")
cd "$(dirname "$0")/.."
python -m pipeline.fetch fashion-mnist "$out/fashion-mnist"
python -m pipeline.shard "$out/fashion-mnist" "$out/dataset"
for activation in relu tanh; do
    for rate in 0.02 0.005; do
        python jobs/train.py --data "$out/dataset" --run "$out/$activation-$rate" --recipe small_demo --workers 1 \
            --model.activation "$activation" --model.dropout 0 --optimizer.learning-rate "$rate" \
            --optimizer.schedule constant --num-epochs 2
    done
done
python jobs/curves.py "$out"/{relu,tanh}-{0.02,0.005} --x samples --smoothing-samples 6400 --samples-to-error 0.15 \
    --out "$out/curves.png"
