#!/bin/sh
# guest.sh SECONDS ROUNDS DEVICE: measure the device with the tools that are made for it.
# The host is asked for a turn at first and before each transfer, so that guests measure one after the other.

seconds=$1
rounds=$2
device=$3

turn='echo "#ready" >/dev/hvc0; read -r go </dev/hvc0'

tool() { # tool NAME ARGUMENT...
    name=$1
    shift
    /tools/lib/ld-linux-x86-64.so.2 --library-path /tools/lib "/tools/bin/$name" "$@"
}

each_round() { # each_round COMMAND ARGUMENT...
    round=0
    while [ $((round += 1)) -le "$rounds" ]; do "$@"; done
}

disk() { # disk MIB: the device node of the disk of that size
    for size in /sys/class/block/vd*/size; do
        read -r sectors <"$size"
        if [ "$sectors" = $(($1 * 2048)) ]; then
            size=${size%/size}
            echo "/dev/${size##*/}"
            return
        fi
    done
    echo "no disk of $1 MiB" >&2
}

jobs() { # 4 KiB at random and 1 MiB in sequence, reads and writes, one and 32 at a time
    for depth in 1 32; do
        for job in randread:4k randwrite:4k read:1m write:1m; do
            echo "[${job%:*}_${job#*:}_d$depth]
rw=${job%:*}
bs=${job#*:}
iodepth=$depth"
        done
    done
}

fio() { # fio FILE OPTION...
    file=$1
    shift
    each_round jobs >jobs
    tool fio --output-format=terse --terse-version=3 --filename="$file" --stonewall --exec_prerun="$turn" \
        --time_based=1 --runtime="$seconds" --ramp_time=200ms --norandommap=1 --gtod_reduce=1 --thread=1 \
        --ioengine=libaio --direct=1 "$@" jobs
}

blk() { fio "$(disk 64)"; }
vhost_user_blk() { fio "$(disk 65)"; }

pmem() {
    modprobe -a virtio_pmem nd_pmem
    fio /dev/pmem0
}

virtiofs() {
    modprobe virtiofs
    mkdir /shared
    mount -t virtiofs bench /shared
    fio /shared/file
}

# The host's end of the tap is in the address of the card: 02:KIND, then four bytes of IPv4.
card() { # card KIND: set $card and $host
    for address in /sys/class/net/*/address; do
        IFS=: read -r _ kind a b c d <"$address"
        if [ "$kind" = "$1" ]; then
            address=${address%/address}
            card=${address##*/}
            host=$((0x$a)).$((0x$b)).$((0x$c)).$((0x$d))
            return
        fi
    done
    echo "no card of kind $1" >&2
}

transfers() { # to and from the host, then one message after the other
    sh -c "$turn"
    tool iperf3 --client "$host" --time "$seconds" --json
    sh -c "$turn"
    tool iperf3 --client "$host" --time "$seconds" --json --reverse
    sh -c "$turn"
    tool sockperf ping-pong --tcp --ip "$host" --time "$seconds"
}

network() { # network KIND
    card "$1"
    ip addr add "${host%.*}.2/24" dev "$card"
    ip link set "$card" up
    until ping -c 1 -W 1 "$host" >/dev/null; do :; done
    each_round transfers
}

# Memory that was used and is free again: the host looks how much of it comes back.
balloon() { # without turns
    modprobe virtio_balloon
    mount -t tmpfs -o size=100% tmpfs /tmp
    dd if=/dev/zero of=/tmp/file bs=1M count=192 2>/dev/null
    echo "#filled"
    sleep 2
    rm /tmp/file
    echo 3 >/proc/sys/vm/drop_caches
    sleep 10 # Linux reports every two seconds
    echo "#freed"
}

net() { network 01; }
vhost_net() { network 02; }

cd /tmp || exit
[ "$device" = balloon ] || sh -c "$turn"
"$device" 2>&1
echo "#end"
sleep 1000
