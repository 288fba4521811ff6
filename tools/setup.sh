#!/bin/sh
# Bring what pip cannot: `setup.sh venv | npm | test | faults`. Installs Debian packages as root (or with a
# passwordless sudo), else says which line to run. Does nothing, quickly, when all is there.
set -eu
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}
missing=""

need() {
    missing="$missing $*"
}

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; else sudo -n "$@"; fi
}

install_missing() {
    [ -n "$missing" ] || return 0
    if ! command -v apt-get > /dev/null; then
        echo "Missing; please install, by Debian's names:$missing" >&2
        exit 1
    fi
    if ! as_root true 2> /dev/null; then
        echo "Missing; please run: sudo apt-get update && sudo apt-get install$missing" >&2
        exit 1
    fi
    echo "Installing$missing"
    as_root apt-get update -q > /dev/null
    # shellcheck disable=SC2086  # a list of words
    as_root env DEBIAN_FRONTEND=noninteractive \
        apt-get install -qq -y --no-install-recommends $missing > /dev/null
    missing=""
}

make_venv() {
    "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || {
        echo "Python 3.10 or later is needed: make PYTHON=…" >&2
        exit 1
    }
    [ -x .venv/bin/pip ] && return
    if "$PYTHON" -c 'import ensurepip, venv' 2> /dev/null; then
        "$PYTHON" -m venv --clear .venv
    elif "$PYTHON" -c 'import pip, venv' 2> /dev/null; then
        # Debian splits ensurepip off; then any pip can bring another one, without root.
        "$PYTHON" -m venv --clear --without-pip .venv
        packages=$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
        "$PYTHON" -m pip install --quiet --target "$packages" pip
        printf '#!/bin/sh\nexec "$(dirname "$0")/python" -m pip "$@"\n' > .venv/bin/pip
        chmod +x .venv/bin/pip
    else
        need python3-venv
        install_missing
        "$PYTHON" -m venv --clear .venv
    fi
}

# The newest server that is installed, else the one that the distribution would install.
debian_version() {
    installed=$(ls /usr/lib/postgresql 2> /dev/null | sort -n | tail -n 1)
    [ -n "$installed" ] && echo "$installed" && return
    apt-cache depends postgresql 2> /dev/null | sed -n 's/.*Depends: postgresql-\([0-9]*\)$/\1/p'
}

need_test_programs() {
    command -v pg_prove > /dev/null || need libtap-parser-sourcehandler-pgtap-perl
    command -v pgbouncer > /dev/null || [ -x /usr/sbin/pgbouncer ] || need pgbouncer
    command -v apt-get > /dev/null || return 0
    version=$(debian_version)
    if [ -z "$version" ]; then
        as_root apt-get update -q > /dev/null 2>&1 || true
        version=$(debian_version)
    fi
    if [ -z "$version" ]; then
        need postgresql # not root, and no list of packages: its extensions will be asked for next
        return
    fi
    [ -x "/usr/lib/postgresql/$version/bin/postgres" ] || need "postgresql-$version"
    extensions=/usr/share/postgresql/$version/extension
    [ -e "$extensions/pgtap.control" ] || need "postgresql-$version-pgtap"
    [ -e "$extensions/plpgsql_check.control" ] || need "postgresql-$version-plpgsql-check"
}

case ${1:-} in
    venv) make_venv ;;
    npm) command -v npm > /dev/null || need npm ;;
    test) need_test_programs ;;
    faults) ls /usr/lib/*/faketime/libfaketimeMT.so.1 > /dev/null 2>&1 || need faketime ;;
    *) echo "usage: setup.sh venv | npm | test | faults" >&2; exit 2 ;;
esac
install_missing
