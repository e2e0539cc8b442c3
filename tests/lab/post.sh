#!/bin/busybox sh
# post URL BODY: sends a report, again and again for ten minutes, until the server takes it (2xx) or says that it
# never will (404, 405, 410, 413). Exit 0: taken; 1: refused; 2: ten minutes are over.
# `wget -T` is not used: Debian's static busybox 1.35 crashes on it.
url=$1
body=$2
read -r now _ </proc/uptime
end=$((${now%%.*} + 600))
pause=1
while :; do
    answer=$(busybox timeout 20 busybox wget -q -O /dev/null --post-data "$body" "$url" 2>&1) && exit 0
    case $answer in *" 404"* | *" 405"* | *" 410"* | *" 413"*) exit 1 ;; esac
    read -r now _ </proc/uptime
    [ "${now%%.*}" -lt "$end" ] || exit 2
    busybox sleep "$pause"
    [ "$pause" -ge 30 ] || pause=$((pause * 2))
done
