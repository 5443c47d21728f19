#!/bin/sh
# Make .venv from requirements.lock and compile the kernel (the default), or: setup.sh lock | lock-check.
#
# Needs a Python with pip or venv, and a network. uv does the work: the one on the PATH, else one fetched for the time of
# this script. Package indexes, certificates and proxies are those the machine is set up with, for uv or for pip.
set -eu
cd "$(dirname "$0")/.."

DOWNLOAD_MB=500   # sum of the wheels for Linux x86-64, Python 3.11 (pip download, then du), with uv itself
INSTALLED_MB=1700 # du of the .venv; bytecode, made at first import, comes on top
PLATFORMS="x86_64-unknown-linux-gnu aarch64-unknown-linux-gnu aarch64-apple-darwin"
PYTHONS="3.11 3.12"

say() { printf '%s\n' "setup: $*" >&2; }
fail() { say "$*"; exit 1; }

# --- a Python: 3.11 or 3.12 to run with; any Python 3 will do to fetch uv, which then brings the right one
runs() { command -v "$1" >/dev/null 2>&1 && "$1" -c "import sys; sys.exit(not ($2))" >/dev/null 2>&1; }
find_python() {
    python="" any=""
    for candidate in ${PYTHON:-} python3 python3.12 python3.11 python; do
        if runs "$candidate" "(3, 11) <= sys.version_info[:2] < (3, 13)"; then python=$candidate any=$candidate; return; fi
        if [ -z "$any" ] && runs "$candidate" "sys.version_info >= (3, 8)"; then any=$candidate; fi
    done
    [ -n "$any" ] || fail "no Python 3 found. Install Python 3.11 or 3.12, for example: $(install_line python3)"
    say "no Python 3.11 or 3.12 found ($any is $("$any" -V 2>&1)): uv fetches Python 3.12, 30 MB more"
}
install_line() {
    if command -v apt-get >/dev/null 2>&1; then echo "sudo apt-get install -y python3-venv"
    elif command -v dnf >/dev/null 2>&1; then echo "sudo dnf install -y python3.12 python3-pip"
    elif command -v brew >/dev/null 2>&1; then echo "brew install python@3.12"
    else echo "your system's packages for Python 3.12, with venv and pip"; fi
}

# --- uv, told what pip was told: uv reads none of pip's settings
from_pip() { "$any" -m pip config get "global.$1" 2>/dev/null || true; }
adopt() { # adopt UV_NAME PIP_NAME option: keep uv's own value, else take pip's
    eval "own=\${$1:-} theirs=\${$2:-}"
    [ -n "$own" ] || own=${theirs:-$(from_pip "$3")}
    if [ -n "$own" ]; then eval "$1=\$own"; export "${1?}"; fi
}
configure() {
    adopt SSL_CERT_FILE PIP_CERT cert
    adopt UV_HTTP_TIMEOUT PIP_DEFAULT_TIMEOUT timeout
    for file in "${XDG_CONFIG_HOME:-$HOME/.config}/uv/uv.toml" /etc/uv/uv.toml; do [ -f "$file" ] && return; done
    [ -n "${UV_INDEX_URL:-}" ] || adopt UV_DEFAULT_INDEX PIP_INDEX_URL index-url
    [ -n "${UV_EXTRA_INDEX_URL:-}" ] || adopt UV_INDEX PIP_EXTRA_INDEX_URL extra-index-url
    adopt UV_INSECURE_HOST PIP_TRUSTED_HOST trusted-host
    adopt UV_NO_INDEX PIP_NO_INDEX no-index
    adopt UV_FIND_LINKS PIP_FIND_LINKS find-links
    if [ -n "${UV_FIND_LINKS:-}" ]; then UV_FIND_LINKS=$(echo "$UV_FIND_LINKS" | tr ' ' ','); fi
}
find_uv() {
    uv=uv
    if ! uv pip --help >/dev/null 2>&1; then
        fetched=$(mktemp -d)
        trap 'rm -rf "$fetched"' EXIT
        say "fetching uv"
        if "$any" -m pip --version >/dev/null 2>&1; then
            PIP_ROOT_USER_ACTION=ignore "$any" -m pip install --quiet --disable-pip-version-check --target "$fetched" uv
        elif "$any" -m venv "$fetched" >/dev/null 2>&1; then
            "$fetched/bin/python" -m pip install --quiet --disable-pip-version-check uv
        else
            fail "this Python ($any) has neither pip nor venv. Run: $(install_line) - then the same command again"
        fi
        uv=$fetched/bin/uv
    fi
    configure
}

make_environment() {
    say "downloads about $DOWNLOAD_MB MB once and fills .venv with about $INSTALLED_MB MB; a minute and the network"
    free_mb=$(($(df -Pk . | awk 'NR == 2 {print $4}') / 1024))
    [ -x .venv/bin/python ] || [ "$free_mb" -ge $((INSTALLED_MB + DOWNLOAD_MB)) ] ||
        fail "only $free_mb MB are free here, $((INSTALLED_MB + DOWNLOAD_MB)) are needed: free some space"
    find_python
    find_uv
    runs .venv/bin/python "(3, 11) <= sys.version_info[:2] < (3, 13)" ||
        "$uv" venv --quiet --clear --python "${python:-3.12}" .venv ||
        fail "Python 3.11 or 3.12 could not be had: install one with your system's packages, then the same command again"
    "$uv" pip sync --quiet --python .venv/bin/python --require-hashes --only-binary :all: requirements.lock
    # the build back end comes from the lock, so that this last step needs no network
    "$uv" pip install --quiet --python .venv/bin/python --no-deps --no-build-isolation --offline --editable .
    touch .venv/.complete
    say "compiling the kernel, the better part of a minute; a later version of it compiles itself when it is first used"
    .venv/bin/python -c "from ingestion.kernel.warm import warm_up; warm_up()"
    say "done: .venv has $(.venv/bin/python -V), activate it with: . .venv/bin/activate"
}

lock() {
    find_python; find_uv
    UV_CUSTOM_COMPILE_COMMAND="make lock" "$uv" pip compile --quiet --universal --generate-hashes --only-binary :all: \
        --extra dev --python-version 3.11 --no-emit-index-url --no-emit-find-links "$@" pyproject.toml -o requirements.lock
}

lock_check() { # every pin has a wheel for every platform we promise
    find_python; find_uv
    for platform in $PLATFORMS; do
        for version in $PYTHONS; do
            "$uv" pip compile --quiet --no-deps --only-binary :all: --no-header \
                --python-platform "$platform" --python-version "$version" requirements.lock >/dev/null ||
                fail "requirements.lock has no binary resolution for $platform, Python $version"
            say "binary-only for $platform, Python $version"
        done
    done
}

case ${1:-setup} in
setup) make_environment ;;
lock) shift; lock "$@" ;;
lock-check) lock_check ;;
*) fail "unknown argument $1: expected nothing, lock or lock-check" ;;
esac
