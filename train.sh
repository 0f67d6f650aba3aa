#!/bin/sh
# Train and then validate:  sh train.sh [dataset ...] [key=value ...]
#
# Without a data set: every prepared one; where there is none, the built-in ultrasound phantom.
# `phantom` is generated if it is named and does not exist.
# The first start makes .venv and installs the requirements. The same command resumes after a stop.
set -eu
cd "$(dirname "$0")"
. utils/shell.sh

refuse_options "$@"
environment requirements.txt
named=$(for argument; do case $argument in (*=*) ;; (*) echo "$argument" ;; esac; done)
if [ -z "$named$(prepared)" ] || echo "$named" | grep -qx phantom; then
    run "$PYTHON" -m datasets.prepare phantom
fi
each_data_set "train valid" "$@"
