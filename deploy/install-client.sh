#!/bin/sh
# Installs or upgrades heron-client on devices over ssh: binary, certificate, options and unit. Nothing is left on a device but these files.
# Usage: deploy/install-client.sh --help
set -eu
umask 077

usage() {
    cat <<'TEXT'
Installs or upgrades heron-client on devices over ssh; safe to repeat: what is up to date stays, and only what changed restarts the service.

  deploy/install-client.sh --host HOST... --binary TARBALL --bundle FOLDER --server HOST:PORT --data SOURCE [--root DIR]

  --host HOST...      devices, as ssh knows them (bed-1 or pi@bed-1); without any, --root installs into a folder of this machine
  --binary TARBALL    of `make client-binary`: has heron-client/heron-client; TARBALL.sha256 beside it is checked
  --bundle FOLDER     authority/devices, with a folder for each HOST by its name, or for a single device the folder itself
                      (heron certs issue HOST)
  --server HOST:PORT  the server that the device trains with
  --data SOURCE       the device's own data, as heron-client --data takes them
  --root DIR          install below DIR instead of /, without users and services: for images

On a device it needs sh, tar, xz, sha256sum and systemd; as root, or by sudo without a password.
TEXT
}

fail() {
    printf 'install-client: %s\n' "$1" >&2
    exit "${2:-1}"
}

# --- on the device: everything has been copied to $stage ---

# Folders are for everybody to enter; what is secret has a mode of its own.
make_folder() {
    (umask 022 && mkdir -p "$1")
}

# Puts a file in place if it differs, and remembers that something changed.
place() { # SOURCE TARGET MODE
    if [ -f "$2" ] && cmp -s "$1" "$2"; then
        chmod "$3" "$2"
        return 0
    fi
    cp "$1" "$2.new"
    chmod "$3" "$2.new"
    mv "$2.new" "$2"
    changed=yes
}

unpack() { # DIGEST
    releases=$root/opt/heron-client/releases
    release=$releases/$1
    make_folder "$releases"
    if [ ! -d "$release" ]; then
        rm -rf "$release.new"
        mkdir -p "$release.new"
        tar -xof "$stage/heron-client.tar" -C "$release.new" || fail "the tarball cannot be unpacked here: a .tar.xz needs xz"
        [ -x "$release.new/heron-client/heron-client" ] || fail "the tarball has no executable heron-client/heron-client"
        chmod -R u=rwX,go=rX "$release.new"
        mv "$release.new" "$release"
    fi
    if [ "$(readlink "$root/opt/heron-client/current" || true)" != "releases/$1/heron-client" ]; then
        ln -sfn "releases/$1/heron-client" "$root/opt/heron-client/current.new"
        mv -T "$root/opt/heron-client/current.new" "$root/opt/heron-client/current"
        changed=yes
    fi
}

# The present release and the one before stay, to go back to.
forget_old_releases() {
    # shellcheck disable=SC2012 # names are digests
    ls -1t "$root/opt/heron-client/releases" | tail -n +3 | while read -r old; do
        case $(readlink "$root/opt/heron-client/current") in
        "releases/$old/"*) ;;
        *) rm -rf "$root/opt/heron-client/releases/$old" ;;
        esac
    done
}

install_here() {
    (cd "$stage" && sha256sum --check --quiet SHA256SUMS) || fail "what arrived is not what was sent: try again" 3
    changed=no
    if [ -z "$root" ] && ! id heron-client >/dev/null 2>&1; then
        useradd --system --user-group --home-dir /var/lib/heron-client --no-create-home --shell /usr/sbin/nologin heron-client
    fi
    digest=$(sha256sum "$stage/heron-client.tar" | cut -c 1-16)
    unpack "$digest"
    make_folder "$root/etc/heron-client"
    make_folder "$root/etc/systemd/system"
    mkdir -p "$root/etc/heron-client/tls"
    for name in ca.pem device.pem device-key.pem; do
        place "$stage/tls/$name" "$root/etc/heron-client/tls/$name" 600
    done
    place "$stage/client.env" "$root/etc/heron-client/client.env" 640
    place "$stage/heron-client.service" "$root/etc/systemd/system/heron-client.service" 644
    chmod 700 "$root/etc/heron-client/tls"
    if [ -z "$root" ]; then
        chown -R heron-client:heron-client /etc/heron-client/tls
        systemctl daemon-reload
        systemctl enable --quiet heron-client.service
        if [ "$changed" = yes ] || ! systemctl --quiet is-active heron-client.service; then
            systemctl restart heron-client.service
        fi
    fi
    forget_old_releases
    if [ "$changed" = yes ]; then
        printf 'installed %s\n' "$digest"
    else
        printf 'unchanged %s\n' "$digest"
    fi
}

# --- on the operator's machine ---

check_tarball() {
    [ -f "$binary" ] || fail "--binary $binary is not a file" 2
    [ -f "$binary.sha256" ] || fail "$binary.sha256 is missing: make it where the tarball was built (sha256sum TARBALL > TARBALL.sha256)" 2
    expected=$(cut -c 1-64 "$binary.sha256")
    [ "$(sha256sum "$binary" | cut -c 1-64)" = "$expected" ] || fail "$binary is not what $binary.sha256 says: fetch it again" 3
    names=$(tar -tf "$binary") || fail "$binary is not a tar file, or one that this machine cannot unpack (a .tar.xz needs xz)" 2
    printf '%s\n' "$names" | grep -qx 'heron-client/heron-client' || fail "$binary has no heron-client/heron-client" 2
    if printf '%s\n' "$names" | grep -Eqv '^heron-client(/|$)' || printf '%s\n' "$names" | grep -Eq '(^|/)\.\.(/|$)'; then
        fail "$binary has files outside of heron-client/: it is not a client's tarball" 2
    fi
}

# systemd reads "..." with \ as in C; values that need either are not worth a second quoting.
option() { # NAME VALUE
    case $2 in
    *[\"\\]* | *'
'*) fail "$1 may hold neither quotation marks nor backslashes nor line ends" 2 ;;
    esac
    printf '%s="%s"\n' "$1" "$2"
}

copy() {
    cp "$1" "$2" || fail "cannot copy $1"
}

bundle_of() { # DEVICE
    if [ -f "$bundle/$1/device.pem" ]; then
        printf '%s\n' "$bundle/$1"
    elif [ -f "$bundle/device.pem" ] && [ "$hosts" -le 1 ]; then
        printf '%s\n' "$bundle"
    elif [ -f "$bundle/device.pem" ]; then
        fail "--bundle $bundle is one device's: each needs its own, give authority/devices" 2
    else
        fail "$bundle has no folder for $1: heron certs issue $1" 2
    fi
}

fill_stage() { # DEVICE
    # Within the loop over hosts the shell does not end by itself where a command fails.
    folder=$(bundle_of "$1") || exit 2
    mkdir -p "$stage/tls"
    for name in ca.pem device.pem device-key.pem; do
        [ -f "$folder/$name" ] || fail "$folder/$name is missing: heron certs issue $1" 2
        copy "$folder/$name" "$stage/tls/$name"
    done
    copy "$binary" "$stage/heron-client.tar"
    copy "$here/systemd/heron-client.service" "$stage/heron-client.service"
    copy "$here/install-client.sh" "$stage/install-client.sh"
    {
        printf '# Written by deploy/install-client.sh, which replaces it; options of your own belong into local.env.\n'
        option HERON_CLIENT_SERVER "$server"
        option HERON_CLIENT_DATA "$data"
        option HERON_CLIENT_TLS_DIR /etc/heron-client/tls
    } >"$stage/client.env"
    (cd "$stage" && sha256sum heron-client.tar heron-client.service install-client.sh client.env tls/*.pem >SHA256SUMS)
}

install_on() { # HOST
    fill_stage "${1##*@}" || return 1
    remote=$(ssh "$1" 'umask 077 && mktemp -d') || return 1
    case $remote in
    /*[!A-Za-z0-9/._-]* | [!/]* | '') return 1 ;;
    esac
    status=0
    # shellcheck disable=SC2029 # both were checked: they are plain paths
    {
        scp -q -r "$stage/." "$1:$remote/" &&
            ssh "$1" "if [ \$(id -u) = 0 ]; then r=; else r='sudo -n'; fi; \$r sh $remote/install-client.sh --stage $remote --root '$root'"
    } || status=1
    # shellcheck disable=SC2029
    ssh "$1" "rm -rf $remote" || status=1
    return $status
}

install_everywhere() {
    failed=
    for host in $names_of_hosts; do
        stage=$work/stage
        rm -rf "$stage"
        mkdir -p "$stage"
        # In a shell of its own, so that one device that cannot be reached does not keep the others from their upgrade.
        if result=$( (install_on "$host")); then
            printf '%s: %s\n' "$host" "$result"
        else
            printf '%s: failed\n' "$host" >&2
            failed="$failed $host"
        fi
    done
    [ -z "$failed" ] || fail "not installed on$failed: the reason is above; repeat the command for these"
}

binary='' bundle='' server='' data='' root='' stage='' names_of_hosts='' hosts=0
while [ $# -gt 0 ]; do
    case $1 in
    --help | -h)
        usage
        exit 0
        ;;
    --host)
        while [ $# -gt 1 ]; do
            case $2 in
            --*) break ;;
            -* | *[!A-Za-z0-9@._-]*) fail "--host is a name as ssh knows it, like pi@bed-1, not '$2'" 2 ;;
            esac
            names_of_hosts="$names_of_hosts $2"
            hosts=$((hosts + 1))
            shift
        done
        shift
        ;;
    --binary | --bundle | --server | --data | --root | --stage)
        [ $# -gt 1 ] || fail "$1 wants a value: see --help" 2
        case $1 in
        --binary) binary=$2 ;;
        --bundle) bundle=${2%/} ;;
        --server) server=$2 ;;
        --data) data=$2 ;;
        --root) root=${2%/} ;;
        --stage) stage=$2 ;;
        esac
        shift 2
        ;;
    *) fail "unknown option $1: see --help" 2 ;;
    esac
done

case $root in
'' | /*) ;;
*) fail "--root is an absolute path, not '$root'" 2 ;;
esac
case $root in
*[!A-Za-z0-9/._-]*) fail "--root is a path of letters, digits and ._-, not '$root'" 2 ;;
esac

if [ -n "$stage" ]; then
    install_here
    exit 0
fi

for given in "binary=$binary" "bundle=$bundle" "server=$server" "data=$data"; do
    [ -n "${given#*=}" ] || fail "--${given%%=*} is missing: see --help" 2
done
here=$(cd "$(dirname "$0")" && pwd)
check_tarball
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT TERM
if [ "$hosts" -gt 0 ]; then
    install_everywhere
else
    [ -n "$root" ] || fail "--host or --root is missing: see --help" 2
    stage=$work/stage
    mkdir -p "$stage"
    fill_stage this-device
    install_here
fi
