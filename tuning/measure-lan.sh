#!/bin/sh
# One lane as fast as memory: upstream and downstream in two network namespaces on a veth pair. As root.
#   tuning/measure-lan.sh PLAIT [FILE.conf [MB]]
# FILE.conf: settings of both namespaces, as in this directory; without it the kernel's own. Prints three transfers.
set -eu
plait=$1 settings=${2:-/dev/null} mb=${3:-1000}
dir=$(mktemp -d -p /dev/shm)
a=plait-a-$$ b=plait-b-$$
pids=
finish() {
    # shellcheck disable=SC2086 # a list
    [ -z "$pids" ] || kill $pids
    wait
    ip netns del $a
    ip netns del $b
    rm -r "$dir"
}
trap finish EXIT
trap 'exit 1' INT TERM
ip netns add $a
ip netns add $b
ip -n $a link add lan type veth peer name lan netns $b
ip -n $a addr add 198.18.0.1/24 dev lan
ip -n $b addr add 198.18.0.2/24 dev lan
for host in $a $b; do
    ip -n $host link set lo up
    ip -n $host link set lan up
    ip netns exec $host sysctl -qp "$settings"
done

mkdir "$dir/served"
head -c "${mb}000000" /dev/zero >"$dir/served/film"
"$plait" keygen "$dir/key" >"$dir/log"
ip netns exec $b "$plait" upstream --listen 198.18.0.2:7000 --root "$dir/served" --key "$dir/key" --lane-cc cubic \
    >>"$dir/log" 2>&1 &
pids=$!
ip netns exec $a "$plait" downstream --listen 127.0.0.1:8080 --path 198.18.0.2:7000 --lanes 1 --key "$dir/key" \
    --lane-cc cubic >>"$dir/log" 2>&1 &
pids="$pids $!"

get() { ip netns exec $a curl -sS --fail -o /dev/null -w '%{speed_download}\n' http://127.0.0.1:8080/film; }
# Nanoseconds that the threads of both roles have run.
cpu() { for pid in $pids; do cat /proc/"$pid"/task/*/schedstat; done | awk '{ ns += $1 } END { printf "%.0f\n", ns }'; }
tries=0
until ip netns exec $a curl -s --fail -I -o /dev/null http://127.0.0.1:8080/film; do
    tries=$((tries + 1))
    [ $tries -lt 100 ] || { cat "$dir/log"; exit 1; }
    sleep 0.1
done
for _ in 1 2 3; do
    before=$(cpu)
    speed=$(get)
    echo "$speed $(($(cpu) - before)) $mb" | awk '{ printf "%.0f MB/s, %.3f CPU s/GB\n", $1 / 1e6, $2 / 1e6 / $3 }'
done
