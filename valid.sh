#!/bin/sh
# Validate trained models on their test splits:  sh valid.sh [dataset ...] [key=value ...]
#
# Without a data set: every prepared one that has been trained on. The run is the one of these epochs or, where the
# data set has one run alone and no epochs are given, that one. Where no run exists, the weights in
# ckpt/provided_models are scored, if there are some for the data set.
set -eu
cd "$(dirname "$0")"
. utils/shell.sh

refuse_options "$@"
environment requirements.txt
each_data_set valid "$@"
