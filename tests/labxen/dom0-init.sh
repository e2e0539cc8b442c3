#!/bin/bash
# dom0's first and only process of its own: what xl needs, sshd, and nothing else. The modules are loaded already.
export PATH=/usr/sbin:/usr/bin
mount -t tmpfs run /run
mount -t tmpfs tmp /tmp
mkdir -p /dev/pts /run/lock /run/xen /run/xenstored /run/sshd
chmod 700 /run/xen /run/sshd
mount -t devpts devpts /dev/pts
# Without udev nobody makes these; the block hotplug script loops until it is killed when /dev/stdin is missing.
ln -s /proc/self/fd /dev/fd
ln -s fd/0 /dev/stdin
ln -s fd/1 /dev/stdout
ln -s fd/2 /dev/stderr
hostname dom0
mount -t xenfs xenfs /proc/xen
mount -t 9p -o trans=virtio,version=9p2000.L consoles /consoles

ip link set lo up
# eth0: control, QEMU's user network. eth1: the guests' wire; dom0 has no address there.
ip address add 10.0.2.15/24 dev eth0
ip link set eth0 up
ip link add xenbr0 type bridge stp_state 0 forward_delay 0
ip link set eth1 master xenbr0
ip link set eth1 up
ip link set xenbr0 up

xen=/usr/lib/xen-4.17/bin
$xen/xenstored --pid-file /run/xenstored.pid
$xen/xen-init-dom0
# A look from inside costs a tenth of a second: what guests say is read outside, from the shared folder.
$xen/xenconsoled --log=guest --log-dir=/consoles
echo "dom0: the toolstack runs"
/usr/sbin/sshd
echo "dom0: ready"
while :; do sleep 3600; done
