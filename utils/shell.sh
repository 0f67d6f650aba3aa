# Functions of train.sh, valid.sh and test.sh, which source this file in the repository's root.

# environment FILE...: set PYTHON to an interpreter that satisfies these requirements files.
# An active virtual or conda environment is used if it does; else .venv is made here. A stamp is
# written after a complete installation only, so that an interrupted one is resumed. What a user has
# installed in .venv stays there.
environment() {
    if [ -n "${VIRTUAL_ENV:-}${CONDA_PREFIX:-}" ] && python utils/requirements.py "$@" 2>/dev/null
    then
        PYTHON=python
        return
    fi
    PYTHON=.venv/bin/python
    stamp=.venv/complete_$(cat "$@" | cksum | tr ' ' '_')
    # checked again, as an upgrade of the system may have taken its Python away
    [ -f "$stamp" ] && "$PYTHON" utils/requirements.py "$@" 2>/dev/null && return

    supported='import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 14))'
    if "$PYTHON" -c '' 2>/dev/null; then
        "$PYTHON" -c "$supported" || {
            echo "error: .venv has $("$PYTHON" --version), but Python 3.10 to 3.13 is needed: move .venv away and" \
                "start again" >&2
            exit 2
        }
    else
        base=
        for candidate in python3 python3.13 python3.12 python3.11 python3.10 python; do
            if "$candidate" -c "$supported" 2>/dev/null
            then base=$candidate; break; fi
        done
        if [ -z "$base" ]; then
            echo "error: no Python 3.10 to 3.13 found; install one and start again" >&2
            exit 2
        fi
        echo "making .venv with $("$base" --version)"
        "$base" -m venv --clear .venv || {
            echo "error: cannot make a virtual environment (Debian, Ubuntu: apt install python3-venv)" >&2
            exit 2
        }
    fi
    "$PYTHON" -m pip --version >/dev/null 2>&1 || "$PYTHON" -m ensurepip >/dev/null 2>&1 || {
        echo "error: .venv has no pip, and none can be installed there (Debian, Ubuntu: apt install" \
            "python3-venv); or move .venv away and start again" >&2
        exit 2
    }
    echo "installing $* into .venv (PyTorch is several GB; once only)"
    for file in "$@"; do
        "$PYTHON" -m pip install --disable-pip-version-check --progress-bar on --quiet -r "$file" || {
            echo "error: the installation failed; the same command resumes it" >&2
            exit 2
        }
    done
    touch "$stamp"
}

# refuse_options ARGUMENT...: stop at an option, which belongs to a script in Python.
refuse_options() {
    for argument; do
        case $argument in
            -*)
                echo "error: expected data sets and key=value, got $argument; options go to" \
                    "python train.py or python valid.py, which list them with --help" >&2
                exit 2
                ;;
        esac
    done
}

# run COMMAND...: run it and pass signals on, so that stopping the script stops (and saves) the run.
run() {
    child= stopped=
    trap 'stopped=1; [ -z "$child" ] || kill -TERM "$child" 2>/dev/null' INT TERM HUP
    "$@" &
    child=$!
    [ -z "$stopped" ] || kill -TERM "$child" 2>/dev/null
    status=0
    wait "$child" || status=$?
    while kill -0 "$child" 2>/dev/null; do
        status=0
        wait "$child" || status=$?
    done
    trap - INT TERM HUP
    [ "$status" -eq 0 ] || exit "$status"
}

# Names of the data sets that have training cases, or no dataset.json to tell, a word each.
prepared() {
    for file in datasets/*/*_train_test_names.*; do
        grep -qs '"train": 0,' "$(dirname "$file")/dataset.json" && continue
        [ -f "$file" ] && basename "$(dirname "$file")"
    done | sort -u
}

# has_weights NAME: whether there is a trained run of the data set, or weights that come with the repository.
has_weights() {
    for file in ckpt/wave_gms_"$1"/epochs_*/best_model.* ckpt/provided_models/"$1"/config.yaml; do
        [ -f "$file" ] && return
    done
    return 1
}

# refuse_one_folder_for_many "STEP..." "NAME..." [key=value ...]: stop where several data sets would write into one
# folder, each over what the one before wrote there.
refuse_one_folder_for_many() {
    steps=$1 names=$2
    shift 2
    [ "$(echo $names | wc -w)" -gt 1 ] || return 0
    for argument; do
        case "$steps: $argument" in
            *": save_seg_img_path="* | train*": snapshot_path="*)
                echo "error: ${argument%%=*} is one folder for all of$(printf ' %s' $names): start the script once for" \
                    "each data set, with another folder, or leave it out: each then has its own" >&2
                exit 2
                ;;
        esac
    done
}

# each_data_set "STEP..." [dataset ...] [key=value ...]: run STEP.py for each data set in turn.
# Without a data set: every prepared one, for validation alone every one that has weights. One without configs of its own gets configs/own_*.yaml.
each_data_set() {
    steps=$1
    shift
    names=
    for argument; do
        shift
        case $argument in
            *=*) set -- "$@" "$argument" ;;
            *) names="$names $argument" ;;
        esac
    done
    if [ -z "$names" ]; then
        names=$(prepared)
        if [ -z "$names" ]; then
            echo "error: no data set is prepared; see: $PYTHON -m datasets.prepare --list" >&2
            exit 2
        fi
        trained=$(for name in $names; do has_weights "$name" && echo "$name"; done) || :
        case "$steps $*" in
            *\ snapshot_path=* | *\ model_weight=* | train*) ;; # the weights may be elsewhere, or to come
            *) [ -z "$trained" ] || names=$trained ;;
        esac
    fi
    refuse_one_folder_for_many "$steps" "$names" "$@"
    for name in $names; do
        for step in $steps; do
            echo "== $name: $step"
            if [ -f "configs/${name}_$step.yaml" ]; then
                run "$PYTHON" "$step.py" --config "configs/${name}_$step.yaml" "$@"
            else
                run "$PYTHON" "$step.py" --config "configs/own_$step.yaml" \
                    "pickle_file_path=datasets/$name/${name}_train_test_names.json" \
                    "snapshot_path=ckpt/wave_gms_$name" "$@"
            fi
        done
    done
}
