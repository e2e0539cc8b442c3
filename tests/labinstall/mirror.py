#!/usr/bin/python3
"""The index work of prepare.sh: which packages a mirror needs, and the Packages and Release files that list them.

mirror.py udebs INDEX STATUS BUILT...   reads the archive's udeb index, the dpkg status of the installer's initrd and
                                        the folders of rebuilt udebs; prints "FILENAME SHA256" of each udeb to fetch
mirror.py debs LISTS POOL               prints the Packages file of the .debs in POOL, in the words of the archive
mirror.py packages POOL INDEX           prints the Packages file of the .udebs in POOL; INDEX knows the archive's own
mirror.py release FOLDER SUITE          prints the Release file of dists/SUITE in FOLDER
"""
import glob
import hashlib
import os
import re
import subprocess
import sys

# What Debian's installer runs on a plain disk with a network mirror; what they need comes along.
WANTED = """apt-mirror-setup apt-setup-udeb base-installer bootstrap-base clock-setup di-utils-mapdevfs disk-detect
finish-install grub-installer partman-auto partman-base partman-basicfilesystems partman-ext3 partman-partitioning
partman-target pkgsel preseed-common tzsetup-udeb user-setup-udeb""".split()


def stanzas(text):
    for block in re.split(r"\n\n+", text):
        fields, key = {}, None
        for line in block.splitlines():
            if line[0] in " \t":
                fields[key] += "\n" + line
            else:
                key, _, value = line.partition(":")
                fields[key] = value.strip()
        if fields:
            yield fields


def read(path):
    with open(path, encoding="utf-8") as file:
        return list(stanzas(file.read()))


def relation(text):
    """[[name, ...], ...]: all of the outer, one of each inner list."""
    parts = [[one.split()[0].split(":")[0] for one in part.split("|") if one.strip()] for part in text.split(",")]
    return [part for part in parts if part]


def provided(package):
    return {package["Package"], *(names[0] for names in relation(package.get("Provides", "")))}


def control(path):
    """The control file of a .deb or .udeb, or of an unpacked one."""
    if os.path.isdir(path):
        return read(path + "/DEBIAN/control")[0]
    return next(stanzas(subprocess.run(["dpkg-deb", "-f", path], check=True, stdout=subprocess.PIPE, text=True).stdout))


def needed(index, installed, built):
    # The kernel's own udebs follow the initrd's kernel and are rebuilt, so the archive's are of no use.
    archive = {package["Package"]: package for package in index if "Kernel-Version" not in package}
    have = set().union(*(provided(package) for package in installed + built))
    todo, chosen = list(WANTED), {}
    for package in built:
        todo += [names[0] for names in relation(package.get("Depends", "")) if not have.intersection(names)]
    while todo:
        name = todo.pop(0)
        if name in have:
            continue
        package = archive.get(name) or next((p for p in archive.values() if name in provided(p)), None)
        if package is None:
            sys.exit(f"the archive has no udeb {name}")
        chosen[package["Package"]] = package
        have |= provided(package)
        for names in relation(package.get("Depends", "")):
            if not have.intersection(names):
                # A virtual package that one of the wanted ones provides is not looked for elsewhere.
                todo.append(names[0]) if names[0] in archive else todo.extend(names[:1])
    return chosen.values()


def print_packages(packages):
    for fields in packages:
        for key, value in fields.items():
            print(f"{key}: {value}" if not value.startswith("\n") else f"{key}:{value}")
        # debootstrap drops the last stanza of a file without an empty line at its end.
        print()


def placed(fields, path, root):
    with open(path, "rb") as file:
        data = file.read()
    sums = {"MD5sum": hashlib.md5(data).hexdigest(), "SHA256": hashlib.sha256(data).hexdigest()}
    return fields | {"Filename": os.path.relpath(path, root), "Size": str(len(data))} | sums


def files(pool, suffix):
    return sorted(glob.glob(f"{pool}/*.{suffix}"))


def main(command, *arguments):
    if command == "udebs":
        index, status, *built = arguments
        for package in needed(read(index), read(status), [control(folder) for folder in built]):
            print(package["Filename"], package["SHA256"])
    elif command == "debs":
        lists, pool = arguments
        known = {(p["Package"], p["Version"]): p for path in glob.glob(f"{lists}/*_Packages") for p in read(path)}
        own = [(path, control(path)) for path in files(pool, "deb")]
        print_packages(
            placed(known[fields["Package"], fields["Version"]], path, os.path.dirname(pool)) for path, fields in own
        )
    elif command == "packages":
        pool, index = arguments
        known = {(p["Package"], p["Version"]): p for p in read(index)}
        own = [(path, control(path)) for path in files(pool, "udeb")]
        print_packages(
            placed(known.get((fields["Package"], fields["Version"]), fields), path, os.path.dirname(pool))
            for path, fields in own
        )
    elif command == "release":
        folder, suite = arguments
        dists = f"{folder}/dists/{suite}"
        print(f"Origin: bootflip lab\nLabel: bootflip lab\nSuite: stable\nCodename: {suite}\nVersion: 13")
        now = subprocess.run(["date", "-u", "-R"], check=True, stdout=subprocess.PIPE, text=True).stdout.strip()
        print(f"Date: {now}\nArchitectures: amd64\nComponents: main\nDescription: the packages of one installation")
        print("SHA256:")
        for path in sorted(glob.glob(f"{dists}/**/Packages*", recursive=True)):
            with open(path, "rb") as file:
                data = file.read()
            print(f" {hashlib.sha256(data).hexdigest()} {len(data):16} {os.path.relpath(path, dists)}")
    else:
        sys.exit(__doc__)


main(*sys.argv[1:])
