#!/bin/busybox sh
# PID 1 of `nemu run -- COMMAND`: the host's files as the root, one command, its exit status.
# Every fork costs milliseconds where KVM is emulated: builtins and tables do the work (archive.py makes those).
#
# /job sets variables, and $1...: the command's environment, what enters the new root, the command.
# The port nemu.control tells the host "ready", then "exit STATUS" or "error TEXT"; from there come names of
# signals for the command, and "out" or "err" when nobody reads that any more.

bb=/bin/busybox
$bb mount -a # /etc/fstab: /proc, /sys, /dev, /upper
exec </dev/null >/dev/null 2>&1 # there was no console yet
. /job
# What is built in is no module, and what is neither is said below.
$bb modprobe -a $modules
echo 1 >/proc/sys/kernel/printk # the command's terminal is no place for the kernel's warnings
echo nemu >/proc/sys/kernel/hostname

wait_for_ever() { # the host ends the machine when it has what it wants
    while :; do $bb sleep 3600; done
}

fail() { # fail TEXT: instead of an exit status
    echo "error $1" >&3
    wait_for_ever
}

find_ports() { # the name of the command's ports but for its last digit in $port, as soon as they are there
    tries=0
    until [ -e "$port$1" ]; do
        # Without a driver nobody can be told: the host says what a kernel needs.
        tries=$((tries + 1))
        [ $tries -lt 1000 ] || $bb poweroff -f
        [ $tries = 1 ] || $bb usleep 5000
        for file in /sys/class/virtio-ports/*/name; do
            [ -e "$file" ] && read -r name <"$file" && [ "$name" = nemu.control ] || continue
            file=${file%/name}
            port=/dev/${file##*/}
            port=${port%0}
        done
    done
}

filesystem() { # filesystem NAME: whether the kernel has it
    while read -r first second; do
        [ "${second:-$first}" = "$1" ] && return
    done </proc/filesystems
    return 1
}

explain() { # why the root is not as it should be
    filesystem virtiofs || fail "this kernel has no virtiofs: CONFIG_VIRTIO_FS"
    [ "$rw" ] || filesystem overlay ||
        fail "this kernel has no overlay file system: CONFIG_OVERLAY_FS (--rw does without)"
    for place in proc sys dev; do
        [ -d ./$place ] || fail "there is no directory /$place in the root"
    done
    fail "the root cannot be mounted"
}

enter_root() { # the new root, with all that a kernel shows, is "." from now on; "/" stays the initramfs
    $bb cp -a /skeleton/. /
    $bb mount -a -T /etc/root
    # Where a file system should be, the initramfs has this file.
    cd /new && [ ! -e /lower/unmounted ] && [ -e ./proc/self ] && $bb mount -o move . / || explain
    [ -d ".$directory" ] || fail "there is no directory $directory in the root"
}

start() { # start VARIABLE... PROGRAM...: becomes the command, with a session of its own
    read -r self rest <./proc/self/stat
    echo $self >/pid
    controlling=
    [ $stdin = $terminal ] && controlling=-c
    exec $bb setsid $controlling $bb env -i "$@" <$stdin >$stdout 2>$stderr
}

obey() { # what the host says while the command runs
    while read -r word; do
        case $word in
        out) kill -9 $out ;; # so that a writer gets a broken pipe
        err) kill -9 $err ;;
        *)
            until read -r command </pid; do $bb usleep 5000; done
            kill -"$word" -- -$command
            ;;
        esac
    done
}

end_others() { # what the command left behind would hold its output open
    for other in ./proc/[0-9]*; do
        case " 1 $out $err " in
        *" ${other##*/} "*) ;;
        *) kill -9 ${other##*/} ;;
        esac
    done
}

count=0
for stream in $streams; do count=$((count + 1)); done
find_ports $count
exec 3<>${port}0
echo ready >&3
terminal=./dev/hvc0 # as it is called from the new root
stdin=$terminal stdout=$terminal stderr=$terminal out= err= number=0
# A pipe to each port, since a port can be opened only once.  The port first: a pipe waits for its other end,
# and meanwhile /dev moves.
for stream in $streams; do
    number=$((number + 1))
    case $stream in
    in) $bb cat <$port$number >/in & stdin=/in ;;
    out) $bb cat >$port$number </out & stdout=/out out=$! ;;
    err) $bb cat >$port$number </err & stderr=/err err=$! ;;
    esac
done
enter_root
$bb ip link set lo up
[ "$network" ] && $bb udhcpc -q -n -i eth0 -s /etc/udhcpc/default.script
if [ $stdin = $terminal ]; then
    until true <>$terminal; do $bb usleep 5000; done
fi
obey <&3 &
(start "$@" 3>&-) # in the foreground: a shell lets what runs in the background ignore SIGINT
status=$?
end_others
end_others # what was just being born
[ "$out$err" ] && wait $out $err
[ "$rw" ] && $bb sync
echo "exit $status" >&3
wait_for_ever
