# What the scripts that prepare a lab share. To be sourced, with `here` (this folder), `out` (the folder to fill) and
# `work` (a folder for what is only needed meanwhile) set. The kernel is the lab's: unpacked in $work/kernel.

say() { echo "prepare: $*"; }

need=""
wants() { # PROGRAM-OR-FILE PACKAGE
    if ! command -v "$1" >/dev/null && ! [ -e "$1" ]; then need="$need $2"; fi
}

install_wanted() {
    [ -n "$need" ] || return 0
    say "installing:$need"
    apt-get -q update >/dev/null
    # shellcheck disable=SC2086
    DEBIAN_FRONTEND=noninteractive apt-get -q -y install --no-install-recommends $need >/dev/null
}

# Downloads a package's .deb into $work and unpacks it into a folder.
unpack() { # PACKAGE FOLDER
    say "downloading $1"
    if ! (cd "$work" && apt-get -q download "$1" >/dev/null 2>&1); then
        apt-get -q update >/dev/null
        (cd "$work" && apt-get -q download "$1" >/dev/null 2>&1) || { say "cannot download $1" >&2; exit 1; }
    fi
    mkdir -p "$2"
    dpkg -x "$work/$1"_*.deb "$2"
    rm -f "$work/$1"_*.deb
}

# Modules of the lab's kernel, in an order in which insmod takes them.
copy_modules() { # FOLDER MODULES
    mkdir -p "$1/lib/modules"
    for module in $2; do
        modprobe -d "$work/kernel" -S "$release" --show-depends "$module" 2>/dev/null || true
    done | awk '$1 == "insmod" && !seen[$2]++ { print $2 }' >"$work/modules"
    : >"$1/lib/modules/order"
    while read -r file; do
        case $file in *.ko) cp "$file" "$1/lib/modules/" ;; *.ko.xz) xz -dc "$file" >"$1/lib/modules/$(basename "$file" .xz)" ;; esac
        basename "$file" .xz >>"$1/lib/modules/order"
    done <"$work/modules"
}

# A program and the libraries it names.
copy_program() { # PROGRAM FOLDER
    program=$(command -v "$1")
    cp -L "$program" "$2/sbin/"
    ldd "$program" | awk '{ for (i = 1; i <= NF; i++) if ($i ~ /^\//) print $i }' | while read -r library; do
        mkdir -p "$2$(dirname "$library")"
        cp -L "$library" "$2$library"
    done
}

base_tree() { # FOLDER
    rm -rf "$1"
    mkdir -p "$1/bin" "$1/sbin" "$1/proc" "$1/sys" "$1/dev" "$1/run" "$1/tmp" "$1/etc" "$1/root" "$1/mnt"
    cp -L "$(command -v busybox)" "$1/bin/busybox"
    ln -s busybox "$1/bin/sh"
    install -m 755 "$here/lease.sh" "$1/sbin/lease"
    install -m 755 "$here/post.sh" "$1/sbin/post"
}

archive() { # FOLDER
    (cd "$1" && find . | sort | cpio --quiet -o -H newc -R 0:0)
}
