#!/bin/sh
# Validate trained models on their test splits:  sh valid.sh [dataset ...] [key=value ...]
#
# Without a data set: every prepared one.
set -eu
cd "$(dirname "$0")"
. utils/shell.sh

environment requirements.txt
each_data_set valid "$@"
