#!/bin/sh
# setup.sh LOCK: have .venv hold the packages that LOCK names, with the hashes it names; for the
# development lock PyTorch and OpenVINO beside them, else OpenVINO where the processor profits. Takes
# milliseconds when it does already. Cut off half-way, the next run completes it; two at once wait
# for each other.
set -eu
cd "$(dirname "$0")/.."
lock=$1
marker=.venv/.stenopool
cpuinfo=${STENO_CPUINFO:-/proc/cpuinfo} # tests set it
# In no lock, as which build is fit depends on the machine. pip takes a CPU build where it is told
# of one (PIP_FIND_LINKS, PIP_INDEX_URL, PIP_EXTRA_INDEX_URL or its configuration; uv reads none).
torch=torch==2.13.0

say() { printf 'steno: %s\n' "$*" >&2; }

fail() {
    say "$@"
    exit 1
}

fingerprint() {
    printf '%s %s' "$1" "$(cksum <"$1")"
    if trains "$1"; then printf ' %s' "$torch"; fi
    if wants_openvino "$1"; then printf ' %s' "$(cksum <openvino.lock)"; fi
    echo
}

wants_openvino() { [ -f openvino.lock ] && { trains "$1" || profits_from_openvino; }; }

# With AMX, Whisper's encoder takes a third of the time on OpenVINO (common/asr/encoders.py).
profits_from_openvino() {
    [ -r "$cpuinfo" ] || return 1
    flags=
    while IFS= read -r line; do
        case $line in flags*) flags=$line && break ;; esac
    done <"$cpuinfo"
    case " $flags " in *" amx_bf16 "*) ;; *) return 1 ;; esac
}

trains() { [ "$1" = requirements-dev.lock ]; }

# The development lock holds everything that the other one does.
is_set_up() {
    [ -x .venv/bin/python ] && [ -f "$marker" ] || return 1
    installed=$(cat "$marker")
    [ "$installed" = "$(fingerprint "$lock")" ] ||
        [ "$installed" = "$(fingerprint requirements-dev.lock)" ]
}

# The first Python on PATH that is new enough; else uv fetches one.
find_python() {
    for candidate in ${STENO_PYTHON:-} python3 python3.14 python3.13 python3.12 python3.11; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            command -v "$candidate"
            return
        fi
    done
    if has_uv; then
        uv python find '>=3.11' 2>/dev/null && return
        uv python install --quiet 3.11 && uv python find '>=3.11' && return
    fi
    fail "needs Python 3.11 or newer: install it with your system's packages, set STENO_PYTHON to" \
        "where it is, or install uv, which fetches one"
}

has_uv() { command -v uv >/dev/null 2>&1; }

# Whether .venv holds a Python that can install into it.
is_usable() {
    .venv/bin/python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null &&
        { has_uv || .venv/bin/python -c 'import pip' 2>/dev/null; }
}

# Run something with its output in .venv.log, and say how far it is; show the end of that output only
# when it fails.
quietly() {
    { "$@" 2>&1 || echo "failed: $?"; } | tee .venv.log | show_progress
    case $(tail -n 1 .venv.log) in failed:*) ;; *) return ;; esac
    tail -n 15 .venv.log >&2
    fail "could not set up .venv: \`$1 $2 $3\` failed, see above and .venv.log"
}

# What pip and uv say of packages: on a terminal in one line that changes, else in every tenth line.
show_progress() {
    total=$(grep -c '^[a-z].*==' "$lock") || total=0
    count=0
    while IFS= read -r line; do
        case $line in
            Collecting\ * | Processing\ *)
                count=$((count + 1))
                said=${line#* }
                said=${said%% (from *}
                said="$count of $total: ${said##*/}"
                [ -t 2 ] || [ $((count % 10)) -eq 0 ] || continue
                ;;
            Downloading\ *) said=$line ;;
            Installing\ collected\ *) said="unpacking $count packages (a minute or so) ..." ;;
            *) continue ;;
        esac
        if [ -t 2 ]; then printf '\r\033[Ksteno: %.70s' "$said" >&2; else say "$said"; fi
    done
    if [ -t 2 ]; then printf '\r\033[K' >&2; fi
}

make_venv() {
    if has_uv; then
        quietly uv venv --clear --python "$python" .venv
    else
        quietly "$python" -m venv --clear .venv
    fi
}

install_packages() {
    install_lock "$lock"
    # Nothing but tests needs it: without it, Whisper is slower.
    if wants_openvino "$lock"; then
        (install_lock openvino.lock) || say "goes on without OpenVINO"
    fi
    if trains "$lock"; then
        quietly .venv/bin/python -m pip install --disable-pip-version-check "$torch"
    fi
}

# A lock is complete but for torch, which others in it name: so nothing is to be looked for.
install_lock() {
    if has_uv; then
        quietly uv pip install --python .venv/bin/python --no-deps --require-hashes -r "$1"
    else
        quietly .venv/bin/python -m pip install --disable-pip-version-check --no-deps \
            --require-hashes -r "$1"
    fi
}

if is_set_up; then exit 0; fi

if [ "${STENO_SETUP_ALONE:-}" != yes ]; then
    python=$(find_python)
    # The kernel lets go of this lock however we end; flock(1) is not everywhere, Python is.
    STENO_SETUP_ALONE=yes exec "$python" -c '
import fcntl, os, sys
lock = open(".venv.lock", "w")
fcntl.flock(lock, fcntl.LOCK_EX)
os.set_inheritable(lock.fileno(), True)
os.execvp("sh", ["sh", "scripts/setup.sh", sys.argv[1]])
' "$lock"
fi

if trains "$lock"; then size="1.5 GB, or 6 with CUDA,"; else size="500 MB"; fi
say "installing the packages of $lock into .venv (once, about $size on disk) ..."
if ! is_usable; then
    python=$(find_python)
    make_venv
fi
rm -f "$marker"
install_packages
fingerprint "$lock" >"$marker"
rm -f .venv.log
say "installed"
