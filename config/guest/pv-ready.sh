#!/bin/sh
# bootflip-pv-ready: makes an installed Linux system ready for a start as a paravirtualized (PV) guest by pygrub, and
# tells in one JSON document whether it is.
#
#   bootflip-pv-ready [--xen VERSION] [--check] [--output FILE]
#
#   --xen VERSION   the oldest Xen of the pool, such as 4.13; kept for later runs. Without it the strictest rules hold.
#   --check         change nothing; only tell
#   --output FILE   the document goes there, not to the standard output
#   --refresh       what kernel upgrades call: unpacked kernels, menu.lst and grub.cfg anew, no document
#   --grub-entries  what update-grub calls: prints the plain entries
#   --root DIR      another system's root (tests); with --disk FILE --boot-at BYTES for the file system of its /boot
#
# Runs as root inside the system: by an installer's last step (in-target, curtin in-target, %post, chroot), or by hand
# on a running guest. Ends with 0: ready or mended, 1: not ready, 2: usage. A second run changes nothing. Files are
# replaced whole or not at all, and what boots the system with a BIOS (HVM) stays as it was: the distribution's own
# entries are GRUB's default. POSIX sh; dash and busybox ash are enough.
#
# https://xenbits.xen.org/docs has pygrub's own page; docs/pv-readiness.md of bootflip says why each step is here.
set -u
LC_ALL=C
PATH=/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin:$PATH
export LC_ALL PATH
umask 022
TMP=$(mktemp -d "${TMPDIR:-/tmp}/pv-ready.XXXXXX") || exit 2
trap 'rm -rf "$TMP"' EXIT

ROOT='' XEN='' XEN_GIVEN=no MODE=mend OUTPUT='' DISK='' BOOT_AT=''
SELF=/usr/local/sbin/bootflip-pv-ready
SETTINGS=/etc/default/bootflip-pv-ready
SECTION=/etc/grub.d/06_bootflip_pv
# pygrub copies no file larger than this out of a guest since XSA-443.
LARGEST=134217728
# What the document holds at most, so that it stays below 32 KiB.
TEXT_MAX=300 CHECKS_MAX=48 KERNELS_MAX=6
CHECKS='' CHECKS_COUNT=0 BLOCKED=no MENDED=no
NEWLINE='
'
TAB=$(printf '\t')

usage() {
    echo "usage: $0 [--xen VERSION] [--check] [--output FILE] [--root DIR [--disk FILE --boot-at BYTES]]" >&2
    exit 2
}

# ---------------------------------------------------------------- the document

# One JSON string. What is not printable ASCII is left out: names of devices and files are all that comes here.
json() {
    printf '"%s"' "$(printf '%s' "$1" | tr '\n\t' '  ' | tr -cd '\040-\176' | cut -c "1-$TEXT_MAX" | sed 's/[\\"]/\\&/g')"
}

number() {
    case $1 in '' | *[!0-9]*) printf null ;; *) printf '%s' "$1" ;; esac
}

# One finding. ok, advice: a PV start does not hang on it; mended; todo: --check, a run without it mends that;
# problem: only a person can mend it.
found() { # CHECK ok|advice|mended|todo|problem TEXT
    case $2-$1 in
    problem-* | todo-fstab | todo-kernel-args | todo-compression | todo-drivers) BLOCKED=yes ;;
    mended-*) MENDED=yes ;;
    esac
    [ "$CHECKS_COUNT" -lt "$CHECKS_MAX" ] || return 0
    CHECKS_COUNT=$((CHECKS_COUNT + 1))
    CHECKS="$CHECKS${CHECKS:+,$NEWLINE }{\"check\":$(json "$1"),\"state\":$(json "$2"),\"detail\":$(json "$3")}"
}

mended() { # CHECK TEXT
    if [ "$MODE" = check ]; then found "$1" todo "$2"; else found "$1" mended "$2"; fi
}

# ---------------------------------------------------------------- files

# Replaces a file by the standard input: whole, with the old one's owner and mode. 0: it differs (and was written, but
# for --check), 1: it is so already, 2: it cannot be written.
put() { # PATH MODE
    put_to=$1
    [ -z "$ROOT" ] && [ -L "$put_to" ] && put_to=$(readlink -f "$put_to")
    put_new=$TMP/new
    cat >"$put_new"
    if [ -f "$put_to" ] && cmp -s "$put_new" "$put_to"; then return 1; fi
    put_code=0
    if [ "$MODE" != check ]; then
        mkdir -p "${put_to%/*}" 2>/dev/null
        # Beside the old one, so that the rename is atomic.
        put_next=${put_to%/*}/.pv-ready.$$
        if { [ ! -f "$put_to" ] || cp -p "$put_to" "$put_next"; } 2>/dev/null && cat "$put_new" 2>/dev/null >"$put_next" &&
            { [ -f "$put_to" ] || chmod "$2" "$put_next"; } && mv -f "$put_next" "$put_to"; then
            if [ -z "$ROOT" ] && command -v restorecon >/dev/null; then restorecon "$put_to" 2>/dev/null; fi
        else
            rm -f "$put_next"
            put_code=2
        fi
    fi
    return "$put_code"
}

# What put() came to, as a finding. 1: it was so already.
told() { # CODE CHECK TEXT
    case $1 in
    0) mended "$2" "$3" ;;
    2) found "$2" problem "cannot write: $3" ;;
    esac
    return "$1"
}

# Bytes of a file or device. dd seeks, od would read up to there.
bytes() { # FILE OFFSET COUNT
    dd if="$1" bs=512 skip="$(($2 / 512))" count="$((($2 % 512 + $3 + 511) / 512))" 2>/dev/null |
        tail -c "+$(($2 % 512 + 1))" | head -c "$3"
}

hex() { # FILE OFFSET COUNT
    bytes "$1" "$2" "$3" | od -A n -v -t x1 | tr -d ' \n'
}

# A little-endian number of 1, 2 or 4 bytes; nothing where there are none.
little() { # FILE OFFSET SIZE
    bytes "$1" "$2" "$3" | od -A n -v -t u1 |
        awk 'BEGIN { p = 1 } { for (i = 1; i <= NF; i++) { n += $i * p; p *= 256 } } END { if (p > 1) printf "%.0f", n }'
}

size_of() { # FILE
    wc -c <"$1" 2>/dev/null | tr -d ' '
}

# ---------------------------------------------------------------- versions of Xen

# Whether the pool's Xen is older than this. Unknown counts as old: what is done then is right on every Xen.
xen_before() { # MAJOR MINOR
    case $XEN in [0-9]*.[0-9]*) ;; *) return 0 ;; esac
    xen_major=${XEN%%.*}
    xen_minor=${XEN#*.}
    xen_minor=${xen_minor%%[!0-9]*}
    [ "$xen_major" -lt "$1" ] || { [ "$xen_major" -eq "$1" ] && [ "${xen_minor:-0}" -lt "$2" ]; }
}

# Whether the domain builder unpacks this: lz4 since Xen 4.4, zstd since 4.15, the others before that.
unpacks() { # COMPRESSION
    case $1 in
    gzip | bzip2 | lzma | xz | lzo | none) return 0 ;;
    lz4) ! xen_before 4 4 ;;
    zstd) ! xen_before 4 15 ;;
    *) return 1 ;;
    esac
}

# ---------------------------------------------------------------- (a) UUIDs

# The UUID of what is on a device. An installation as HVM saw sda where PV has xvda, so those names count as one.
uuid_of() { # DEVICE
    uuid_name=${1##*/}
    uuid_rest=$(printf '%s' "$uuid_name" | sed 's/^xvd//; s/^[svh]d//')
    for uuid_try in "$uuid_name" "sd$uuid_rest" "xvd$uuid_rest" "vd$uuid_rest" "hd$uuid_rest"; do
        for uuid_link in "$ROOT"/dev/disk/by-uuid/*; do
            [ -L "$uuid_link" ] || continue
            uuid_target=$(readlink "$uuid_link")
            [ "${uuid_target##*/}" = "$uuid_try" ] || continue
            printf '%s' "${uuid_link##*/}"
            return 0
        done
        if [ -n "$ROOT" ] || [ ! -b "/dev/$uuid_try" ]; then continue; fi
        uuid_found=$(blkid "/dev/$uuid_try" 2>/dev/null | sed -n 's/.* UUID="\([^"]*\)".*/\1/p')
        [ -z "$uuid_found" ] || { printf '%s' "$uuid_found"; return 0; }
    done
    return 1
}

UNSTABLE='/dev/\(sd\|xvd\|vd\|hd\)[a-z][a-z]*[0-9]*'
# Device names that differ between HVM and PV, as sed commands that put UUIDs in their place.
RENAMES='' NAMELESS=''
find_renames() {
    renames_in=$(cat "$ROOT/etc/fstab" "$ROOT/etc/initramfs-tools/conf.d/resume" "$ROOT/etc/default/grub" \
        "$ROOT"/etc/default/grub.d/*.cfg "$ROOT/etc/kernel/cmdline" "$ROOT"/boot/loader/entries/*.conf 2>/dev/null |
        sed "s/#.*//; s/[ $TAB=\"']/\\$NEWLINE/g" | grep "^$UNSTABLE\$" | sort -u)
    for renames_device in $renames_in; do
        if renames_uuid=$(uuid_of "$renames_device"); then
            RENAMES="${RENAMES}s,\\(^\\|[ ${TAB}=\"']\\)$renames_device\\(\$\\|[ ${TAB}\"']\\),\\1UUID=$renames_uuid\\2,g$NEWLINE"
        else
            NAMELESS="$NAMELESS $renames_device"
        fi
    done
}

by_uuid() {
    if [ -n "$RENAMES" ]; then sed "/^[ $TAB]*#/!{$NEWLINE$RENAMES}"; else cat; fi
}

FSTAB=''
read_fstab() {
    if [ -f "$ROOT/etc/fstab" ]; then FSTAB=$(by_uuid <"$ROOT/etc/fstab"); fi
}

mend_names() {
    read_fstab
    for names_file in "$ROOT/etc/fstab" "$ROOT/etc/initramfs-tools/conf.d/resume" "$ROOT/etc/default/grub" "$ROOT"/etc/default/grub.d/*.cfg \
        "$ROOT/etc/kernel/cmdline" "$ROOT"/boot/loader/entries/*.conf; do
        [ -f "$names_file" ] || continue
        names_check=kernel-args
        case $names_file in */fstab) names_check=fstab ;; */resume) names_check=resume ;; esac
        # shellcheck disable=SC2094 # put() reads to the end before it writes
        by_uuid <"$names_file" | put "$names_file" 644
        told $? "$names_check" "${names_file#"$ROOT"} names devices by UUID" && [ "$names_check" = resume ] && INITRD_STALE=yes
    done
    for names_device in $NAMELESS; do
        found fstab problem "$names_device is named, and has no UUID that could be found: name it by UUID or LABEL"
    done
}

fstab_of() { # MOUNT-POINT: device, options
    printf '%s\n' "$FSTAB" | awk -v at="$1" '$1 !~ /^#/ && $2 == at { print $1, $4; exit }'
}

# What udev's names under /dev/disk stand for: an initrd finds UUIDs and the volumes of LVM by themselves.
plain_spec() { # DEVICE
    case $1 in
    /dev/disk/by-uuid/*) printf 'UUID=%s' "${1##*/}" ;;
    /dev/disk/by-id/dm-*)
        spec_target=$(readlink "$ROOT$1")
        spec_name=$(cat "$ROOT/sys/class/block/${spec_target##*/}/dm/name" 2>/dev/null)
        if [ -n "$spec_name" ]; then printf '/dev/mapper/%s' "$spec_name"; else printf '%s' "$1"; fi
        ;;
    *) printf '%s' "$1" ;;
    esac
}

ROOT_SPEC='' ROOT_FLAGS='' BOOT_SPEC='' SEPARATE=false BASE='' PREFIX=''
find_places() {
    # shellcheck disable=SC2046
    set -- $(fstab_of /) ''
    ROOT_SPEC=$(plain_spec "$1")
    case ",${2:-}," in *,subvol=*) ROOT_FLAGS=" rootflags=$(printf '%s' "$2" | tr ',' '\n' | grep '^subvol=' | head -n 1)" ;; esac
    # shellcheck disable=SC2046
    set -- $(fstab_of /boot) ''
    BOOT_SPEC=$(plain_spec "$1")
    # Paths are relative to the file system that pygrub reads.
    BASE=$ROOT PREFIX=/boot
    if [ -n "$BOOT_SPEC" ]; then SEPARATE=true BASE=$ROOT/boot PREFIX=''; fi
    [ -n "$BOOT_SPEC" ] || BOOT_SPEC=$ROOT_SPEC
    case $ROOT_SPEC in
    UUID=* | LABEL=* | PARTUUID=* | PARTLABEL=* | /dev/mapper/* | /dev/disk/by-*) found root ok "root is $ROOT_SPEC" ;;
    '') found root problem "/etc/fstab has no line for /: write one, by UUID" ;;
    *) found root problem "root is $ROOT_SPEC, which may have another name in a PV guest: name it by UUID in /etc/fstab" ;;
    esac
}

# ---------------------------------------------------------------- kernels

first_of() { # FILE...
    for first_file in "$@"; do
        if [ -f "$first_file" ]; then printf '%s' "$first_file"; return 0; fi
    done
    return 1
}

image_of() { first_of "$ROOT/boot/vmlinuz-$1" "$ROOT/boot/vmlinux-$1" "$ROOT/boot/kernel-$1"; }
initrd_of() { first_of "$ROOT/boot/initrd.img-$1" "$ROOT/boot/initramfs-$1.img" "$ROOT/boot/initrd-$1" "$ROOT/boot/initramfs-$1"; }

# yes, no or unknown.
configured() { # VERSION OPTION yes-pattern
    config_file=$ROOT/boot/config-$1
    [ -f "$config_file" ] || config_file=$ROOT/lib/modules/$1/config
    [ -f "$config_file" ] || { echo unknown; return; }
    if grep -q "^$2=$3" "$config_file"; then echo yes; else echo no; fi
}

# Versions that can start as PV, newest first. Rescue images are none that a guest should start by itself.
kernels() {
    for kernels_file in "$ROOT"/boot/vmlinuz-* "$ROOT"/boot/vmlinux-* "$ROOT"/boot/kernel-*; do
        [ -f "$kernels_file" ] || continue
        kernels_version=${kernels_file##*/}
        kernels_version=${kernels_version#*-}
        case $kernels_version in *rescue* | *.old | *.bak | *.dpkg-* | *.rpm* | *[!A-Za-z0-9._+~-]*) continue ;; esac
        [ "$(configured "$kernels_version" CONFIG_XEN_PV y)" = no ] || echo "$kernels_version"
    done | sort -u | sort -rV
}

by_magic() { # HEX
    case $1 in
    1f8b*) echo gzip ;;
    425a68*) echo bzip2 ;;
    fd377a585a00*) echo xz ;;
    5d0000*) echo lzma ;;
    894c5a4f*) echo lzo ;;
    02214c18* | 04224d18*) echo lz4 ;;
    28b52ffd*) echo zstd ;;
    7f454c46*) echo none ;;
    *) echo unknown ;;
    esac
}

# Where the packed kernel begins in a bzImage, and its length (Linux boot protocol 2.08: setup_sects at 0x1f1, "HdrS" at
# 0x202, payload_offset at 0x248, payload_length at 0x24c). Nothing: the file is no bzImage.
payload() { # FILE
    [ "$(hex "$1" 514 4)" = 48647253 ] || return 1
    payload_sectors=$(little "$1" 497 1)
    [ "${payload_sectors:-0}" -gt 0 ] || payload_sectors=4
    payload_offset=$(little "$1" 584 4)
    payload_length=$(little "$1" 588 4)
    [ "${payload_length:-0}" -gt 0 ] || return 1
    echo "$(((payload_sectors + 1) * 512 + payload_offset)) $payload_length"
}

compression_of() { # FILE
    if compression_at=$(payload "$1"); then
        by_magic "$(hex "$1" "${compression_at% *}" 8)"
    else
        by_magic "$(hex "$1" 0 8)"
    fi
}

unpack() { # COMPRESSION
    case $1 in
    gzip) gzip -dc ;;
    bzip2) bzip2 -dc ;;
    xz) xz -dc ;;
    lzma) xz --format=lzma -dc 2>/dev/null || lzma -dc ;;
    lzo) lzop -dc ;;
    lz4) lz4 -dc ;;
    zstd) zstd -dc ;;
    none) cat ;;
    *) return 1 ;;
    esac 2>/dev/null
}

# The copy of a kernel for hosts that cannot unpack it. No name that GRUB's own scripts look for: GRUB could not boot it.
copy_of() { printf '%s' "$ROOT/boot/pv-kernel-$1.gz"; }

# Whether a kernel needs a copy that is not there, or is older than it.
lacks_copy() { # VERSION IMAGE COMPRESSION
    if unpacks "$3" || [ "$3" = unknown ]; then return 1; fi
    [ ! -f "$(copy_of "$1")" ] || [ -n "$(find "$2" -newer "$(copy_of "$1")")" ]
}

# Keeps a gzipped ELF beside a kernel that the pool's Xen cannot unpack.
keep_copy() { # VERSION IMAGE COMPRESSION
    keep_at=$(payload "$2") || return 1
    keep_length=${keep_at#* }
    # Behind all but gzip stand four bytes that tell the unpacked size; tools take them for damage.
    [ "$3" = gzip ] || keep_length=$((keep_length - 4))
    keep_next=$ROOT/boot/.pv-ready.$$
    bytes "$2" "${keep_at% *}" "$keep_length" | unpack "$3" >"$TMP/elf"
    if [ "$(hex "$TMP/elf" 0 4)" = 7f454c46 ] && gzip -9c <"$TMP/elf" >"$keep_next" &&
        gzip -t <"$keep_next" && mv -f "$keep_next" "$(copy_of "$1")"; then
        return 0
    fi
    rm -f "$keep_next"
    return 1
}

# Copies for kernels that need one, none for those that are gone or need none.
keep_copies() {
    for copies_version in $(kernels); do
        copies_image=$(image_of "$copies_version") || continue
        copies_packed=$(compression_of "$copies_image")
        lacks_copy "$copies_version" "$copies_image" "$copies_packed" || continue
        if [ "$MODE" = check ] || keep_copy "$copies_version" "$copies_image" "$copies_packed"; then
            mended compression "kernel $copies_version ($copies_packed) is kept unpacked for Xen ${XEN:-of any version}, as /boot/pv-kernel-$copies_version.gz"
        elif [ -n "$XEN" ]; then
            found compression problem "kernel $copies_version is packed with $copies_packed, which Xen $XEN cannot unpack, and could not be unpacked here: install the program $copies_packed, make room in /boot, or use a kernel packed with gzip or xz"
        fi
    done
    for copies_old in "$ROOT"/boot/pv-kernel-*.gz; do
        if [ ! -f "$copies_old" ] || [ "$MODE" = check ]; then continue; fi
        copies_version=${copies_old##*/pv-kernel-}
        if ! copies_image=$(image_of "${copies_version%.gz}") || unpacks "$(compression_of "$copies_image")"; then
            rm -f "$copies_old"
        fi
    done
}

# The file that pygrub is to take for a version.
pv_image_of() { # VERSION
    pv_image=$(image_of "$1") || return 1
    if ! unpacks "$(compression_of "$pv_image")" && [ -f "$(copy_of "$1")" ]; then
        pv_image=$(copy_of "$1")
    fi
    printf '%s' "$pv_image"
}

# ---------------------------------------------------------------- (b), (c) entries, consoles, menus

# The arguments of a version, as its distribution's boot loader gives them.
distribution_args() { # VERSION
    for args_file in "$ROOT"/boot/loader/entries/*-"$1".conf; do
        [ -f "$args_file" ] || continue
        args_options=$(sed -n "s/^options[ $TAB]*//p" "$args_file" | head -n 1)
        args_saved=$(sed -n 's/^kernelopts=//p' "$ROOT/boot/grub2/grubenv" 2>/dev/null | head -n 1)
        case $args_options in *\$kernelopts*) args_options="$args_saved $args_options" ;; esac
        printf '%s\n' "$args_options" | by_uuid
        return
    done
    # These files are shell: what update-grub does with them is what counts.
    (
        set +u
        GRUB_CMDLINE_LINUX='' GRUB_CMDLINE_LINUX_DEFAULT=''
        for args_file in "$ROOT/etc/default/grub" "$ROOT"/etc/default/grub.d/*.cfg; do
            # shellcheck disable=SC1090
            if [ -f "$args_file" ]; then . "$args_file" >/dev/null 2>&1; fi
        done
        printf '%s %s\n' "$GRUB_CMDLINE_LINUX" "$GRUB_CMDLINE_LINUX_DEFAULT" | by_uuid
    )
}

# root by UUID, and hvc0 as the last console, which is where a PV guest's /dev/console is.
args_of() { # VERSION
    args_told=$(distribution_args "$1")
    set -f
    # shellcheck disable=SC2086
    set -- $args_told
    set +f
    args="root=$ROOT_SPEC ro$ROOT_FLAGS"
    for args_word in "$@"; do
        case $args_word in
        root=* | ro | rw | rootflags=subvol=* | BOOT_IMAGE=* | console=hvc0 | vt.handoff=* | *'$'* | *'`'* | *[\'\"\\]*) ;;
        *) args="$args $args_word" ;;
        esac
    done
    printf '%s console=hvc0' "$args"
}

# All versions with what an entry needs, a line each: version, kernel, initrd or -, arguments.
entries() {
    for entries_version in $(kernels); do
        entries_image=$(pv_image_of "$entries_version") || continue
        entries_initrd=$(initrd_of "$entries_version") || entries_initrd=
        entries_initrd=${entries_initrd:+$PREFIX/${entries_initrd##*/}}
        printf '%s\t%s\t%s\t%s\n' "$entries_version" "$PREFIX/${entries_image##*/}" "${entries_initrd:--}" "$(args_of "$entries_version")"
    done
}

# pygrub takes the first entry and looks at no condition. GRUB itself goes on to the distribution's own entries: it could
# not boot an unpacked kernel. What only GRUB understands (an assignment without `set`) tells them apart.
grub_entries() {
    entries | awk -F '\t' -v boot="$BOOT_SPEC" '
        BEGIN { print "# For pygrub, by bootflip-pv-ready; GRUB itself goes on to the entries below." }
        {
            printf "menuentry \047Linux %s (PV)\047 --class gnu-linux {\n", $1
            if (boot ~ /^UUID=/) printf "\tsearch --no-floppy --fs-uuid --set=root %s\n", substr(boot, 6)
            if (boot ~ /^LABEL=/) printf "\tsearch --no-floppy --label --set=root %s\n", substr(boot, 7)
            printf "\tlinux %s %s\n", $2, $4
            if ($3 != "-") printf "\tinitrd %s\n", $3
            print "}"
        }
        END {
            if (!NR) exit
            print "pv_default=\"${default}\""
            print "set default=\"0\""
            printf "if [ \"${pv_default}\" = \"0\" -o -z \"${pv_default}\" ]; then pv_default=\"%d\"; fi\n", NR
            print "default=\"${pv_default}\""
        }'
}

# For pygrubs before Xen 4.2, which read no grub.cfg (or no submenu in it). Where grub-legacy-ec2 keeps this file too, it
# rewrites what is between the marks, with these options; its kernel hook runs before ours.
menu_lst() {
    menu_part=0
    [ "${BOOT_PART:-0}" -gt 0 ] 2>/dev/null && menu_part=$((BOOT_PART - 1))
    menu_legacy=no
    [ -e "$ROOT/usr/sbin/update-grub-legacy-ec2" ] && menu_legacy=yes
    entries | awk -F '\t' -v part="$menu_part" -v legacy="$menu_legacy" '
        NR == 1 {
            print "# Written by bootflip-pv-ready, anew with each kernel."
            print "default 0\ntimeout 1\n"
            if (legacy == "yes") {
                print "### BEGIN AUTOMAGIC KERNELS LIST\n## ## Start Default Options ##"
                print "# kopt=" $4 "\n# groot=(hd0," part ")\n# alternative=false\n# lockalternative=false\n# defoptions="
                print "# howmany=all\n# memtest86=false\n## ## End Default Options ##\n"
            }
        }
        {
            printf "title Linux %s (PV)\n\troot (hd0,%s)\n\tkernel %s %s\n", $1, part, $2, $4
            if ($3 != "-") printf "\tinitrd %s\n", $3
            print ""
        }
        END { if (NR && legacy == "yes") print "### END DEBIAN AUTOMAGIC KERNELS LIST" }'
}

# A grub.cfg as update-grub would write it with our section: the one that is there, with that section put in its place.
with_section() { # GRUB.CFG
    with_new=$(grub_entries)
    NEW="$with_new" awk -v name="$SECTION" '
        function section() {
            if (done) return
            done = 1
            print "### BEGIN " name " ###\n" ENVIRON["NEW"] "\n### END " name " ###"
        }
        $0 == "### BEGIN " name " ###" { section(); skip = 1 }
        !skip && /^### BEGIN \/etc\/grub\.d\// && $3 > name && !done { section(); print "" }
        !skip && /^(menuentry|submenu) / { if (!done) { section(); print "" } }
        !skip { print }
        $0 == "### END " name " ###" { skip = 0 }
        END { section() }' "$1"
}

# /boot/grub2: GRUB reads grub.cfg there (RHEL and its kin, SUSE), and pygrub finds /boot/grub/grub.cfg before it. So
# that one is wholly ours; theirs loads BLS entries, which no pygrub knows.
own_grub_cfg() {
    [ -d "$ROOT/boot/grub2" ] || [ ! -f "$ROOT/boot/grub/grub.cfg" ] || grep -q '^# Wholly by bootflip-pv-ready' "$ROOT/boot/grub/grub.cfg"
}

write_menus() {
    if [ -z "$(entries)" ]; then return; fi
    menu_lst | put "$ROOT/boot/grub/menu.lst" 644
    told $? menu-lst "/boot/grub/menu.lst has a plain entry for each kernel" || true
    if own_grub_cfg; then
        { echo "# Wholly by bootflip-pv-ready, for pygrub: GRUB does not read this file."; grub_entries; } | put "$ROOT/boot/grub/grub.cfg" 644
    else
        with_section "$ROOT/boot/grub/grub.cfg" | put "$ROOT/boot/grub/grub.cfg" 644
    fi
    told $? grub-cfg "/boot/grub/grub.cfg has plain entries for pygrub before all others" || true
}

GRUB_STALE=no
grub_defaults() {
    cat <<'END'
# By bootflip-pv-ready: a PV guest's console is hvc0; pygrub knows no submenus and no saved entry.
GRUB_DEFAULT=0
GRUB_DISABLE_SUBMENU=y
GRUB_DISABLE_OS_PROBER=true
GRUB_DISABLE_LINUX_UUID=false
case " $GRUB_CMDLINE_LINUX " in
*" console=hvc0 "*) ;;
*) GRUB_CMDLINE_LINUX="$GRUB_CMDLINE_LINUX console=hvc0" ;;
esac
END
}

mend_grub_defaults() {
    [ -f "$ROOT/etc/default/grub" ] && [ ! -d "$ROOT/boot/grub2" ] || return 0
    if grep -qs 'default/grub\.d' "$ROOT/usr/sbin/grub-mkconfig"; then
        grub_defaults | put "$ROOT/etc/default/grub.d/zz-bootflip.cfg" 644
    else
        { sed '/^# By bootflip-pv-ready/,/^esac$/d' "$ROOT/etc/default/grub"; grub_defaults; } | put "$ROOT/etc/default/grub" 644
    fi
    told $? console "GRUB gives the kernel console=hvc0, without submenus" && GRUB_STALE=yes
}

hook() {
    echo '#!/bin/sh'
    echo '# By bootflip-pv-ready: pygrub shall find the kernels that there are.'
    echo "[ -x $SELF ] || exit 0"
    echo "$1"
}

# What kernel packages, initramfs builders and update-grub run, so that a new kernel is found as well.
mend_hooks() {
    hooks_changed=no
    if [ -f "$0" ] && grep -qs '^# bootflip-pv-ready: makes an installed' "$0"; then
        put "$ROOT$SELF" 755 <"$0" && hooks_changed=yes
    elif [ ! -f "$ROOT$SELF" ]; then
        found hooks advice "a kernel upgrade will not refresh the menus: save this script as $SELF and run it from there"
        return
    fi
    [ "$XEN_GIVEN" = yes ] && { printf 'XEN=%s\n' "$XEN" | put "$ROOT$SETTINGS" 644 && hooks_changed=yes; }
    if [ -d "$ROOT/boot/grub2" ]; then
        hook "$SELF --refresh >&2 || true" | put "$ROOT/etc/kernel/install.d/95-bootflip-pv.install" 755 && hooks_changed=yes
    else
        # zy: behind what makes the initrd and what grub-legacy-ec2 does, before zz-update-grub.
        for hooks_folder in /etc/kernel/postinst.d /etc/kernel/postrm.d; do
            hook "$SELF --refresh >&2 || true" | put "$ROOT$hooks_folder/zy-bootflip-pv" 755 && hooks_changed=yes
        done
        if [ -d "$ROOT/etc/initramfs-tools" ]; then
            hook "$SELF --refresh >&2 || true" | put "$ROOT/etc/initramfs/post-update.d/zy-bootflip-pv" 755 && hooks_changed=yes
        fi
        if [ -d "$ROOT/etc/grub.d" ]; then
            hook "exec $SELF --grub-entries" | put "$ROOT$SECTION" 755 && { hooks_changed=yes GRUB_STALE=yes; }
        fi
    fi
    if [ "$hooks_changed" = yes ]; then mended hooks "kernel upgrades refresh menu.lst, grub.cfg and unpacked kernels"; fi
}

update_grub() {
    [ "$GRUB_STALE" = yes ] && [ -z "$ROOT" ] && [ "$MODE" = mend ] && command -v update-grub >/dev/null || return 0
    update-grub >&2 || found grub-cfg advice "update-grub failed: GRUB's own entries are as they were"
}

mend_getty() {
    if [ -e "$ROOT/lib/systemd/system/serial-getty@.service" ] || [ -e "$ROOT/usr/lib/systemd/system/serial-getty@.service" ]; then
        if [ ! -e "$ROOT/sbin/upstart" ] && [ ! -e "$ROOT/etc/init/rc.conf" ]; then
            # systemd's generator starts one on every console that the kernel names; naming it twice would make a boot
            # as HVM wait 90 seconds for a device that may not be there.
            found getty ok "systemd starts a getty on the console hvc0"
            return
        fi
    fi
    if [ -d "$ROOT/etc/init" ]; then
        put "$ROOT/etc/init/hvc0.conf" 644 <<'END'
# By bootflip-pv-ready: a getty on the console of a PV guest.
start on stopped rc RUNLEVEL=[2345]
stop on runlevel [!2345]
respawn
pre-start script
    [ -c /dev/hvc0 ] || { stop; exit 0; }
end script
exec /sbin/getty -8 -L 115200 hvc0 vt102
END
        told $? getty "an upstart job starts a getty on hvc0" || true
    elif [ -f "$ROOT/etc/inittab" ]; then
        { grep -v '^hvc0:' "$ROOT/etc/inittab"; echo 'hvc0:2345:respawn:/sbin/getty -L 115200 hvc0 vt102'; } | put "$ROOT/etc/inittab" 644
        told $? getty "inittab starts a getty on hvc0" || true
    else
        found getty advice "no systemd, upstart or inittab: nothing starts a getty on hvc0"
    fi
    if [ -f "$ROOT/etc/securetty" ] && ! grep -q '^hvc0$' "$ROOT/etc/securetty"; then
        { cat "$ROOT/etc/securetty"; echo hvc0; } | put "$ROOT/etc/securetty" 644
        told $? getty "root may log in on hvc0" || true
    fi
}

# ---------------------------------------------------------------- what pygrub will do

# Reads a menu as pygrub does (GrubConf.py of Xen 4.17), its mistakes included. Prints `reads KERNEL INITRD` or `refuses WHY`.
as_pygrub() { # FILE grub2|grub
    head -c 1048576 "$1" | awk -v kind="$2" -v q="'" '
        function refuse(why) { print "refuses " why; over = 1; exit }
        # The two halves of a line: at the first blank, or at a "=" that comes before it.
        function split_line(text,    eq, sp) {
            eq = index(text, "="); sp = match(text, /[ \t]/) ? RSTART : 0
            by_eq = eq && (!sp || eq < sp)
            at = by_eq ? eq : sp
            com = at ? substr(text, 1, at - 1) : text
            arg = at ? substr(text, at + 1) : ""
            sub(/^[ \t]+/, "", arg)
        }
        # `set A=B=C` and `set A` end pygrub with an error.
        function split_set(text,    n, words) {
            split_line(text)
            n = by_eq ? split(text, words, "=") : split(text, words, /[ \t]+/)
            if (n != 2) refuse("line " NR ": `set` with other than one `=`")
            com = "set:" com
            if (arg ~ ("^\".*\"$") || arg ~ ("^" q ".*" q "$")) arg = substr(arg, 2, length(arg) - 2)
        }
        function disk(value) {
            if (substr(value, 1, 1) == "(") value = substr(value, 2)
            sub(/\)$/, "", value)
            if (value !~ /^..[0-9]+(,(msdos|gpt)?[0-9]+)?$/ && value !~ /^\/dev\/xvd[a-z]/) refuse("line " NR ": root is " value)
        }
        function path(value) { sub(/^\([^)]*\)/, "", value); return value }
        function close_entry() { count++; kernels[count] = kernel; initrds[count] = initrd; open = 0 }
        function open_entry() { open = 1; kernel = initrd = "" }
        { sub(/\r$/, ""); sub(/^[ \t]+/, ""); sub(/[ \t]+$/, "") }
        /^$/ || /^#/ { next }
        kind == "grub2" && /^function/ { in_function = 1; next }
        in_function { if (/^}/) in_function = 0; next }
        kind == "grub2" && $0 ~ ("^menuentry [\"" q "].*[\"" q "] .*[{]") { if (open) refuse("line " NR ": an entry within an entry"); open_entry(); next }
        kind == "grub2" && /^submenu/ { level++; next }
        kind == "grub2" && /^}/ {
            if (open) close_entry(); else if (level > 0) level--; else refuse("line " NR ": a brace that closes nothing")
            next
        }
        kind == "grub" && /^title/ { if (open) close_entry(); open_entry(); next }
        {
            split_line($0)
            if (kind == "grub2" && com == "set") split_set(arg)
            if (open && (com == "set:root" || (kind == "grub" && com ~ /^root(noverify)?$/))) disk(arg)
            if (open && (kind == "grub2" ? com ~ /^linux(16)?$/ : com == "kernel")) { kernel = arg; sub(/[ \t].*/, "", kernel); kernel = path(kernel) }
            if (open && (com == "initrd" || (kind == "grub2" && com == "initrd16"))) initrd = path(arg)
            if (!open && com == (kind == "grub2" ? "set:default" : "default")) chosen = arg
        }
        END {
            if (over) exit
            if (open && kind == "grub2") { print "refuses an entry is open at the end"; exit }
            if (open) close_entry()
            if (!count) { print "refuses no entry"; exit }
            if (chosen ~ /^-[0-9]/) { print "refuses the default is negative"; exit }
            n = (chosen ~ /^[0-9]+$/ && chosen < count) ? chosen + 1 : 1
            if (kernels[n] == "") { print "refuses entry " n - 1 " has no kernel"; exit }
            print "reads " kernels[n] " " initrds[n]
        }'
}

PYGRUB_MENU='' PYGRUB_KERNEL='' PYGRUB_INITRD='' PYGRUB_WHY=''
# The first menu in pygrub's order decides, even when it cannot be read.
find_menu() {
    menu_grub2="/boot/grub/grub.cfg /grub/grub.cfg /boot/grub2/grub.cfg /grub2/grub.cfg"
    menu_other="/boot/isolinux/isolinux.cfg /boot/extlinux/extlinux.conf /boot/extlinux.conf /extlinux/extlinux.conf /extlinux.conf"
    menu_grub="/boot/grub/menu.lst /boot/grub/grub.conf /grub/menu.lst /grub/grub.conf"
    menu_order="$menu_grub2 $menu_other $menu_grub"
    [ -n "$XEN" ] && xen_before 4 2 && menu_order="$menu_grub $menu_grub2"
    for menu_try in $menu_order; do
        [ -f "$BASE$menu_try" ] || continue
        PYGRUB_MENU=${BASE#"$ROOT"}$menu_try
        case $menu_try in
        *.cfg) menu_kind=grub2 ;;
        *linux.conf) PYGRUB_WHY="extlinux's menu is not looked into" && return ;;
        *) menu_kind=grub ;;
        esac
        case $menu_try in */isolinux.cfg) PYGRUB_WHY="isolinux's menu is not looked into" && return ;; esac
        menu_says=$(as_pygrub "$BASE$menu_try" "$menu_kind")
        case $menu_says in
        reads*)
            menu_says=${menu_says#reads }
            PYGRUB_KERNEL=${menu_says%% *}
            PYGRUB_INITRD=${menu_says#* }
            ;;
        *) PYGRUB_WHY=${menu_says#refuses } ;;
        esac
        return
    done
    PYGRUB_WHY="there is no grub.cfg or menu.lst"
}

check_menu() {
    find_menu
    if [ -z "$PYGRUB_KERNEL" ]; then
        if [ -n "$PYGRUB_MENU" ]; then found menu problem "pygrub cannot read $PYGRUB_MENU: $PYGRUB_WHY"; else found menu problem "pygrub finds no menu: $PYGRUB_WHY"; fi
        return
    fi
    for menu_file in "$PYGRUB_KERNEL" $PYGRUB_INITRD; do
        if [ ! -f "$BASE$menu_file" ]; then
            PYGRUB_WHY=${PYGRUB_WHY:-"$menu_file is not there"}
            found menu problem "$PYGRUB_MENU names $menu_file, which is not on that file system"
        elif [ "$(size_of "$BASE$menu_file")" -gt "$LARGEST" ]; then
            found size problem "$menu_file has $(size_of "$BASE$menu_file") bytes; pygrub copies at most $LARGEST: MODULES=dep or COMPRESS=xz in initramfs.conf make an initrd smaller"
        fi
    done
    [ -n "$PYGRUB_WHY" ] || found menu ok "$PYGRUB_MENU boots $PYGRUB_KERNEL"
    if grep -q '^submenu' "$ROOT$PYGRUB_MENU"; then
        found menu advice "$PYGRUB_MENU has submenus, which old pygrubs do not know; they stand behind the first entry"
    fi
}

# Whether an initrd holds a module: 0, 1, or 2 where it cannot be told. The names of a cpio archive stand in it as text,
# with the folder of their version; lists such as modules.order name modules without it.
initrd_has() { # INITRD MODULE
    has_list=$TMP/list-${1##*/}
    if [ ! -f "$has_list" ]; then
        { [ -z "$ROOT" ] && command -v lsinitramfs >/dev/null && lsinitramfs "$1" >"$has_list"; } 2>/dev/null ||
            { [ -z "$ROOT" ] && command -v lsinitrd >/dev/null && lsinitrd "$1" >"$has_list"; } 2>/dev/null ||
            list_initrd "$1" >"$has_list"
    fi
    [ -s "$has_list" ] || return 2
    grep -q "modules/[^/ ]*/.*$2\\.ko" "$has_list"
}

list_initrd() { # INITRD
    # Archives that are not packed come first (microcode): each ends with TRAILER!!! and zeros.
    list_at=0 list_steps=0
    while [ "$(bytes "$1" "$list_at" 5)" = 07070 ] && [ "$list_steps" -lt 64 ]; do
        list_steps=$((list_steps + 1))
        list_size=$((0x$(bytes "$1" $((list_at + 54)) 8)))
        list_name=$((0x$(bytes "$1" $((list_at + 94)) 8)))
        list_end=$(bytes "$1" $((list_at + 110)) $((list_name - 1)))
        list_at=$(((list_at + 110 + list_name + 3) / 4 * 4 + (list_size + 3) / 4 * 4))
        if [ "$list_end" = 'TRAILER!!!' ]; then
            list_zeros=$(hex "$1" "$list_at" 1024 | sed 's/^\(\(00\)*\).*/\1/')
            list_at=$((list_at + ${#list_zeros} / 2))
        fi
    done
    list_packed=$(by_magic "$(hex "$1" "$list_at" 8)")
    { cat "$1"; tail -c "+$((list_at + 1))" "$1" | unpack "$list_packed"; } 2>/dev/null | tr '\000' '\n' | grep -a '/modules/' 2>/dev/null
}

# y, initrd, module (on the root file system only), no, unknown.
driver() { # VERSION INITRD OPTION MODULE
    if [ "$(configured "$1" "$3" y)" = yes ]; then echo built-in; return; fi
    driver_seen=unknown
    if [ -n "$2" ]; then
        driver_code=0
        initrd_has "$2" "$4" || driver_code=$?
        case $driver_code in 0) echo initrd; return ;; 1) driver_seen=no ;; esac
    else
        driver_seen=no
    fi
    if [ -n "$(find "$ROOT/lib/modules/$1" "$ROOT/usr/lib/modules/$1" -name "$4.ko*" 2>/dev/null | head -n 1)" ]; then driver_seen=module; fi
    echo "$driver_seen"
}

KERNELS='' INITRD_STALE=no
check_kernels() {
    kernels_count=0
    for check_version in $(kernels); do
        kernels_count=$((kernels_count + 1))
        [ "$kernels_count" -le "$KERNELS_MAX" ] || break
        check_file=$(pv_image_of "$check_version") || continue
        check_packed=$(compression_of "$(image_of "$check_version")")
        check_copy=false
        if [ "$check_file" = "$(copy_of "$check_version")" ]; then check_copy=true check_packed=gzip; fi
        check_initrd=$(initrd_of "$check_version") || check_initrd=
        check_block=$(driver "$check_version" "$check_initrd" CONFIG_XEN_BLKDEV_FRONTEND xen-blkfront)
        check_net=$(driver "$check_version" "$check_initrd" CONFIG_XEN_NETDEV_FRONTEND xen-netfront)
        check_pv=$(configured "$check_version" CONFIG_XEN_PV y)
        KERNELS="$KERNELS${KERNELS:+,$NEWLINE }{\"version\":$(json "$check_version"),\"file\":$(json "${check_file#"$ROOT"}"),\"copy\":$check_copy,\"compression\":$(json "$check_packed"),\"bytes\":$(number "$(size_of "$check_file")"),\"initrd\":$(json "${check_initrd#"$ROOT"}"),\"initrd_bytes\":$(number "$([ -z "$check_initrd" ] || size_of "$check_initrd")"),\"xen_pv\":$(json "$check_pv"),\"block\":$(json "$check_block"),\"net\":$(json "$check_net")}"
        [ "$kernels_count" = 1 ] || continue
        judge_first
    done
    [ "$kernels_count" -gt 0 ] || found kernel problem "no kernel in /boot has CONFIG_XEN_PV: install the distribution's generic kernel (not linux-kvm or a cloud kernel without Xen)"
}

judge_first() {
    [ "$check_pv" = yes ] || found kernel advice "/boot has no config-$check_version: whether the kernel has CONFIG_XEN_PV is not known"
    [ -n "$check_initrd" ] || found initrd advice "kernel $check_version has no initrd"
    case $check_block in
    no | module) found drivers problem "xen-blkfront is not in the initrd of $check_version: add it to /etc/initramfs-tools/modules (dracut: add_drivers) and build the initrd anew" ;;
    unknown) found drivers advice "the initrd of $check_version could not be looked into for xen-blkfront" ;;
    *) found drivers ok "xen-blkfront: $check_block, xen-netfront: $check_net" ;;
    esac
    [ "$check_net" != no ] || found drivers problem "kernel $check_version has no xen-netfront: a PV guest would have no network"
    if ! unpacks "$check_packed"; then
        case $check_packed in
        unknown) found compression advice "how kernel $check_version is packed is not known" ;;
        *) [ -z "$XEN" ] && found compression advice "kernel $check_version is packed with $check_packed, which old Xens cannot unpack" ;;
        esac
    fi
}

# A wanted driver that the initrd lacks goes into it with the next build, which is now.
mend_initrd() {
    [ "$MODE" = mend ] || return 0
    mend_version=$(kernels | head -n 1)
    [ -n "$mend_version" ] && mend_image=$(initrd_of "$mend_version") || return 0
    case $(driver "$mend_version" "$mend_image" CONFIG_XEN_BLKDEV_FRONTEND xen-blkfront) in
    built-in | initrd | unknown) ;;
    *)
        INITRD_STALE=yes mend_code=1
        if [ -d "$ROOT/etc/initramfs-tools" ]; then
            { grep -v '^xen-\(blk\|net\)front$' "$ROOT/etc/initramfs-tools/modules" 2>/dev/null; printf 'xen-blkfront\nxen-netfront\n'; } | put "$ROOT/etc/initramfs-tools/modules" 644
            mend_code=$?
        elif [ -d "$ROOT/etc/dracut.conf.d" ]; then
            echo 'add_drivers+=" xen-blkfront xen-netfront "' | put "$ROOT/etc/dracut.conf.d/bootflip-pv.conf" 644
            mend_code=$?
        fi
        told "$mend_code" drivers "the initrd is built with xen-blkfront and xen-netfront" || true
        ;;
    esac
    [ "$INITRD_STALE" = yes ] && [ -z "$ROOT" ] || return 0
    if command -v update-initramfs >/dev/null; then
        update-initramfs -u -k all >&2
    elif command -v dracut >/dev/null; then
        dracut -f "$mend_image" "$mend_version" >&2
    fi || found initrd advice "the initrd could not be built anew"
    rm -f "$TMP"/list-*
}

BOOT_TABLE=unknown BOOT_KIND=unknown BOOT_PART=0 BOOT_FS=unknown BOOT_FEATURES='' BOOT_DEVICE=''
# The disk and the place on it where /boot's file system begins.
find_boot_device() {
    if [ -n "$DISK" ]; then BOOT_KIND=partition && return; fi
    [ -z "$ROOT" ] || return 0
    case $BOOT_SPEC in
    UUID=*) BOOT_DEVICE=$(readlink -f "/dev/disk/by-uuid/${BOOT_SPEC#UUID=}") ;;
    LABEL=*) BOOT_DEVICE=$(readlink -f "/dev/disk/by-label/${BOOT_SPEC#LABEL=}") ;;
    /dev/*) BOOT_DEVICE=$(readlink -f "$BOOT_SPEC") ;;
    esac
    if [ ! -b "$BOOT_DEVICE" ]; then
        boot_at=/
        [ "$SEPARATE" = false ] || boot_at=/boot
        BOOT_DEVICE=$(awk -v at="$boot_at" '$2 == at && $1 ~ /^\/dev\// { device = $1 } END { print device }' /proc/self/mounts 2>/dev/null)
    fi
    boot_name=$(basename "$(readlink -f "${BOOT_DEVICE:-none}")")
    boot_sys=/sys/class/block/$boot_name
    case $boot_name in
    dm-*) BOOT_KIND=lvm ;;
    md*) BOOT_KIND=raid ;;
    esac
    [ "$BOOT_KIND" = unknown ] || return 0
    if [ -e "$boot_sys/partition" ]; then
        DISK=/dev/$(basename "$(readlink -f "$boot_sys/..")")
        BOOT_AT=$(($(cat "$boot_sys/start") * 512))
        BOOT_KIND=partition
    elif [ -e "$boot_sys/size" ]; then
        # Xen can give a guest a partition without its disk (xvda1): pygrub sees only that.
        DISK=/dev/$boot_name BOOT_AT=0 BOOT_KIND=partition
    fi
}

# Which of the places where pygrub looks for file systems this one is: the four of an MBR, all of a GPT, or the disk itself.
find_partition() {
    BOOT_TABLE=none
    if [ "$(hex "$DISK" 510 2)" = 55aa ]; then
        for part_number in 1 2 3 4; do
            part_entry=$((430 + 16 * part_number))
            part_start=$(little "$DISK" $((part_entry + 8)) 4)
            [ "${part_start:-0}" -gt 0 ] || continue
            BOOT_TABLE=dos
            if [ "$(little "$DISK" $((part_entry + 4)) 1)" = 238 ]; then
                BOOT_TABLE=gpt
                find_gpt_partition
                return
            fi
            if [ "$((part_start * 512))" = "$BOOT_AT" ]; then BOOT_PART=$part_number; fi
        done
    fi
    if [ "$BOOT_TABLE" = none ] && [ "$BOOT_AT" = 0 ]; then BOOT_KIND=whole; fi
    if [ "$BOOT_TABLE" = dos ] && [ "$BOOT_PART" = 0 ]; then BOOT_KIND=logical; fi
}

find_gpt_partition() {
    part_count=$(little "$DISK" 592 4) part_size=$(little "$DISK" 596 4) part_number=0
    while [ "$part_number" -lt "${part_count:-0}" ] && [ "$part_number" -lt 128 ]; do
        part_number=$((part_number + 1))
        if [ "$(($(little "$DISK" $((1024 + (part_number - 1) * part_size + 32)) 4) * 512))" = "$BOOT_AT" ]; then
            BOOT_PART=$part_number
            return
        fi
    done
}

feature() { # VALUE BIT NAME
    if [ $(($1 & $2)) -ne 0 ]; then BOOT_FEATURES="$BOOT_FEATURES $3"; fi
}

find_file_system() {
    if [ "$(hex "$DISK" $((BOOT_AT + 1080)) 2)" = 53ef ]; then
        fs_compat=$(little "$DISK" $((BOOT_AT + 1116)) 4)
        fs_incompat=$(little "$DISK" $((BOOT_AT + 1120)) 4)
        fs_ro=$(little "$DISK" $((BOOT_AT + 1124)) 4)
        feature "$fs_compat" 4 has_journal
        feature "$fs_compat" 4096 orphan_file
        feature "$fs_incompat" 64 extent
        feature "$fs_incompat" 128 64bit
        feature "$fs_incompat" 512 flex_bg
        feature "$fs_incompat" 1024 ea_inode
        feature "$fs_incompat" 8192 metadata_csum_seed
        feature "$fs_incompat" 16384 large_dir
        feature "$fs_incompat" 32768 inline_data
        feature "$fs_incompat" 65536 encrypt
        feature "$fs_incompat" 131072 casefold
        feature "$fs_ro" 512 bigalloc
        feature "$fs_ro" 1024 metadata_csum
        BOOT_FS=ext2
        case $BOOT_FEATURES in
        *extent* | *flex_bg* | *64bit* | *metadata_csum*) BOOT_FS=ext4 ;;
        *has_journal*) BOOT_FS=ext3 ;;
        esac
    elif [ "$(hex "$DISK" "$BOOT_AT" 4)" = 58465342 ]; then
        BOOT_FS=xfs
    elif [ "$(bytes "$DISK" $((BOOT_AT + 65600)) 8 | tr -d '\000')" = _BHRfS_M ]; then
        BOOT_FS=btrfs
    elif [ "$(hex "$DISK" "$BOOT_AT" 4)" = 4c554b53 ]; then
        BOOT_FS=luks
    elif [ "$(bytes "$DISK" $((BOOT_AT + 536)) 8 | tr -d '\000')" = 'LVM2 001' ]; then
        BOOT_FS=lvm
    elif [ "$(bytes "$DISK" $((BOOT_AT + 54)) 3 | tr -d '\000')" = FAT ] || [ "$(bytes "$DISK" $((BOOT_AT + 82)) 3 | tr -d '\000')" = FAT ]; then
        BOOT_FS=vfat
    fi
}

check_boot() {
    find_boot_device
    case $BOOT_KIND in
    unknown) found boot advice "where /boot lies on its disk could not be found out" && return ;;
    lvm | raid) found boot problem "/boot is on $BOOT_KIND ($BOOT_DEVICE), where pygrub does not look: give it a partition of its own, ext2 or ext3" && return ;;
    esac
    if [ ! -r "$DISK" ]; then found boot advice "$DISK cannot be read" && return; fi
    find_partition
    find_file_system
    if [ "$BOOT_KIND" = logical ]; then
        found boot problem "/boot is on a logical partition, and pygrub reads primary ones only: move it to a primary partition"
    fi
    case $BOOT_FS in
    ext2 | ext3 | vfat) ;;
    ext4)
        if [ -n "$XEN" ] && xen_before 4 2; then
            found boot problem "/boot is ext4, which the pygrub of Xen $XEN does not read: make it ext3"
            return
        fi
        for fs_feature in $BOOT_FEATURES; do
            case $fs_feature in
            metadata_csum_seed | ea_inode | large_dir | inline_data | encrypt | casefold)
                if [ -n "$XEN" ] && xen_before 4 17; then
                    found boot problem "/boot has the ext4 feature $fs_feature, which hosts of Xen $XEN do not know: make it with mke2fs -t ext3, or -O ^$fs_feature"
                fi
                ;;
            64bit | metadata_csum)
                if [ -n "$XEN" ] && xen_before 4 17; then
                    found boot advice "/boot has the ext4 feature $fs_feature, which can defeat the pygrub of old hosts: ext2 or ext3 is safe"
                fi
                ;;
            esac
        done
        ;;
    unknown) found boot problem "/boot's file system is none that pygrub reads: give it a partition of its own, ext2 or ext3" && return ;;
    *) found boot problem "/boot is $BOOT_FS, which pygrub does not read: give it a partition of its own, ext2 or ext3" && return ;;
    esac
    [ "$BOOT_KIND" = logical ] || found boot ok "/boot is $BOOT_FS, $BOOT_KIND $BOOT_PART of a $BOOT_TABLE disk"
}

# ---------------------------------------------------------------- (e) the network, by MAC

# The MAC of an interface; where it has another name now, that of the only card.
mac_of() { # NAME
    mac_found='' mac_count=0
    for mac_card in "$ROOT"/sys/class/net/*; do
        [ -e "$mac_card/device" ] || continue
        mac_count=$((mac_count + 1))
        mac_address=$(cat "$mac_card/address" 2>/dev/null)
        if [ "${mac_card##*/}" = "$1" ]; then printf '%s' "$mac_address"; return 0; fi
        mac_found=$mac_address
    done
    [ "$mac_count" = 1 ] && [ -n "$mac_found" ] || return 1
    printf '%s' "$mac_found"
}

# A card named by its MAC keeps the name under which the network is configured, whatever bus it sits on.
name_by_mac() { # NAME
    case $1 in
    lo | eth[0-9]*) return ;; # the kernel's own names, in the order of the VIFs in both modes
    en* | wl*) ;;
    *) return ;;
    esac
    if ! name_mac=$(mac_of "$1"); then
        found network advice "the network is configured for $1, whose MAC could not be found: in a PV guest it may have another name"
    elif [ -e "$ROOT/lib/systemd/network/99-default.link" ] || [ -e "$ROOT/usr/lib/systemd/network/99-default.link" ]; then
        printf '# By bootflip-pv-ready: this card has this name as HVM and as PV.\n[Match]\nMACAddress=%s\n\n[Link]\nName=%s\n' "$name_mac" "$1" |
            put "$ROOT/etc/systemd/network/10-bootflip-$1.link" 644
        told $? network "$1 is the card with the MAC $name_mac" || true
    else
        found network advice "the network is configured for $1, which may have another name in a PV guest"
    fi
}

# netplan: each block under `ethernets` without a `match` gets one.
netplan_names() { # FILE
    awk '
        { match($0, /^ */); indent = RLENGTH }
        /^ *(#|$)/ { next }
        /^ *ethernets: *$/ { in_it = 1; base = indent; child = 0; next }
        in_it && indent <= base { in_it = 0 }
        in_it && !child { child = indent }
        in_it && indent == child { if (name != "" && body && !matched) print name
            name = ""; body = matched = 0
            if ($0 ~ /: *$/) { name = $1; gsub(/[:"\047]/, "", name) } else { flow = $1; gsub(/[:"\047]/, "", flow); print "flow " flow } }
        in_it && indent > child { body = 1; if ($1 == "match:") matched = 1 }
        !in_it && name != "" { if (body && !matched) print name; name = "" }
        END { if (name != "" && body && !matched) print name }' "$1"
}

mend_netplan() { # FILE
    netplan_names "$1" | while read -r plan_name plan_flow; do
        if [ "$plan_name" = flow ]; then echo "link $plan_flow"; continue; fi
        if plan_mac=$(mac_of "$plan_name"); then echo "match $plan_name $plan_mac"; else echo "link $plan_name"; fi
    done >"$TMP/netplan"
    while read -r plan_how plan_name plan_mac; do
        if [ "$plan_how" = link ]; then
            name_by_mac "$plan_name"
            continue
        fi
        awk -v name="$plan_name" -v mac="$plan_mac" '
            { line = $0; match(line, /^ */); indent = RLENGTH; word = $1; gsub(/[:"\047]/, "", word) }
            pending && line !~ /^ *(#|$)/ {
                pad = sprintf("%" indent "s", "")
                print pad "match:\n" pad "  macaddress: \"" mac "\"\n" pad "set-name: " name
                pending = 0
            }
            { print line }
            !done && word == name && line ~ /: *$/ { pending = done = 1 }' "$1" | put "$1" 600
        told $? network "${1#"$ROOT"}: $plan_name is the card with the MAC $plan_mac" || true
    done <"$TMP/netplan"
}

mend_ifcfg() { # FILE
    ifcfg_name=$(sed -n 's/^DEVICE=["'\'']\{0,1\}\([^"'\'']*\).*/\1/p' "$1" | head -n 1)
    case ${1##*/}-$ifcfg_name in ifcfg-lo-* | *-lo) return ;; esac
    grep -q '^HWADDR=' "$1" && return
    grep -q '^TYPE=["'\'']\{0,1\}Ethernet' "$1" || case $ifcfg_name in e*) ;; *) return ;; esac
    ifcfg_mac=$(mac_of "${ifcfg_name:-${1##*/ifcfg-}}") || { found network advice "${1#"$ROOT"}: the MAC of its card could not be found"; return; }
    # Of a card that is named after its bus the name must not be asked for as well.
    { case $ifcfg_name in eth[0-9]*) cat "$1" ;; *) grep -v '^DEVICE=' "$1" ;; esac; echo "HWADDR=$ifcfg_mac"; } | put "$1" 644
    told $? network "${1#"$ROOT"} names its card by the MAC $ifcfg_mac" || true
}

mend_keyfile() { # FILE
    grep -q '^type=ethernet' "$1" && ! grep -q '^mac-address=' "$1" || return 0
    key_name=$(sed -n 's/^interface-name=//p' "$1" | head -n 1)
    [ -n "$key_name" ] || return 0
    key_mac=$(mac_of "$key_name") || { found network advice "${1#"$ROOT"}: the MAC of $key_name could not be found"; return; }
    awk -v mac="$key_mac" '
        /^interface-name=/ { next }
        { print }
        /^\[ethernet\]/ { print "mac-address=" mac; done = 1 }
        END { if (!done) print "\n[ethernet]\nmac-address=" mac }' "$1" | put "$1" 600
    told $? network "${1#"$ROOT"} names its card by the MAC $key_mac" || true
}

mend_network() {
    for net_file in "$ROOT"/etc/netplan/*.yaml; do
        [ ! -f "$net_file" ] || mend_netplan "$net_file"
    done
    net_names=$(cat "$ROOT/etc/network/interfaces" "$ROOT"/etc/network/interfaces.d/* 2>/dev/null | awk '$1 == "iface" { print $2 }' | sort -u)
    for net_name in $net_names; do
        name_by_mac "$net_name"
    done
    for net_file in "$ROOT"/etc/sysconfig/network-scripts/ifcfg-*; do
        [ ! -f "$net_file" ] || mend_ifcfg "$net_file"
    done
    for net_file in "$ROOT"/etc/NetworkManager/system-connections/*.nmconnection; do
        [ ! -f "$net_file" ] || mend_keyfile "$net_file"
    done
    net_rules=$ROOT/etc/udev/rules.d/70-persistent-net.rules
    if [ -s "$net_rules" ]; then
        [ "$MODE" = check ] || rm -f "$net_rules"
        mended network "the names of cards are no longer kept in 70-persistent-net.rules"
    fi
}

# ---------------------------------------------------------------- the run

document() {
    verdict=ready
    [ "$MENDED" = no ] || verdict=mended
    [ "$BLOCKED" = no ] || verdict=not-ready
    os=$(sed -n 's/^PRETTY_NAME="\{0,1\}\([^"]*\).*/\1/p' "$ROOT/etc/os-release" 2>/dev/null | head -n 1)
    features=''
    for document_feature in $BOOT_FEATURES; do features="$features${features:+,}$(json "$document_feature")"; done
    cat <<END
{"v":1,"mode":"$MODE","xen":$(json "$XEN"),"verdict":"$verdict","os":$(json "$os"),"root":$(json "$ROOT_SPEC"),
 "boot":{"separate":$SEPARATE,"kind":$(json "$BOOT_KIND"),"table":$(json "$BOOT_TABLE"),"partition":$(number "$BOOT_PART"),"fs":$(json "$BOOT_FS"),"features":[$features]},
 "menu":{"file":$(json "$PYGRUB_MENU"),"kernel":$(json "$PYGRUB_KERNEL"),"initrd":$(json "$PYGRUB_INITRD"),"why":$(json "$PYGRUB_WHY")},
 "kernels":[$KERNELS],
 "checks":[$CHECKS]}
END
}

refresh() {
    find_renames
    read_fstab
    find_places
    find_boot_device
    if [ -n "$DISK" ] && [ -r "$DISK" ]; then find_partition; fi
    keep_copies
    write_menus
}

ACTION=run
while [ $# -gt 0 ]; do
    case $1 in
    --xen) [ $# -gt 1 ] || usage; XEN=$2 XEN_GIVEN=yes; shift ;;
    --output) [ $# -gt 1 ] || usage; OUTPUT=$2; shift ;;
    --root) [ $# -gt 1 ] || usage; ROOT=${2%/}; shift ;;
    --disk) [ $# -gt 1 ] || usage; DISK=$2; shift ;;
    --boot-at) [ $# -gt 1 ] || usage; BOOT_AT=$2; shift ;;
    --check) MODE=check ;;
    --refresh) ACTION=refresh ;;
    --grub-entries) ACTION=entries MODE=check ;;
    *) usage ;;
    esac
    shift
done
case $XEN in '' | [0-9]*.[0-9]*) ;; *) usage ;; esac
case ${BOOT_AT:-0} in *[!0-9]*) usage ;; esac
[ -z "$DISK" ] || [ -n "$BOOT_AT" ] || usage
[ "$XEN_GIVEN" = yes ] || XEN=$(sed -n 's/^XEN=//p' "$ROOT$SETTINGS" 2>/dev/null | head -n 1)

case $ACTION in
entries)
    find_renames
    read_fstab
    find_places
    grub_entries
    exit 0
    ;;
refresh)
    refresh
    exit 0
    ;;
esac
find_renames
mend_names
find_places
mend_getty
mend_grub_defaults
mend_network
mend_hooks
find_boot_device
mend_initrd
update_grub
keep_copies
BOOT_PART=0
if [ -n "$DISK" ] && [ -r "$DISK" ]; then find_partition; fi
write_menus
check_boot
check_kernels
check_menu
if [ -n "$OUTPUT" ]; then document >"$OUTPUT"; else document; fi
[ "$BLOCKED" = no ]
