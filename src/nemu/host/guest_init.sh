#!/bin/busybox sh
# PID 1 of nemu's small guest.  Every fork costs milliseconds where KVM is emulated: builtins do the work.
#   nemu.run=COMMAND  runs a percent-encoded shell command, prints "nemu.status N" and powers off
#   nemu.shell        gives a shell on the console; its end powers off
#   neither           shows what this machine is and powers off

bb=/bin/busybox
export PATH=/bin HOME=/root TERM="${TERM:-linux}"

$bb mount -t proc proc /proc
$bb mount -t sysfs sysfs /sys
$bb mount -t devtmpfs devtmpfs /dev
# The console first: whatever goes wrong later is then seen, by a person or by the VMM (pvpanic).
$bb modprobe -a virtio_pci virtio_console pvpanic_mmio
[ -e /sys/bus/acpi/devices/LNRO0005:00 ] && $bb modprobe virtio_mmio
read -r cmdline </proc/cmdline
console=hvc0
for word in $cmdline; do
    case $word in
    console=*) console=${word#console=} console=${console%%,*} ;;
    esac
done
exec </dev/$console >/dev/$console 2>&1
# The command line hides Linux's complaint that no console is there yet; errors show from here on.
echo 4 >/proc/sys/kernel/printk
$bb modprobe -a virtio_blk virtio_net virtio_rng

full() { # what a person or a command needs beyond a kernel and a console
    $bb --install -s /bin
    $bb mkdir -p /dev/pts /dev/shm /tmp /run /root
    $bb mount -t devpts devpts /dev/pts
    $bb ip link set lo up
    # The power button is an input device; acpid runs /etc/acpi/PWRF/00000080 for it.
    $bb modprobe -a button evdev
    $bb acpid -l /dev/null -p /run/acpid.pid
    cd /root || return
}

off() {
    $bb poweroff -f
}

# The legacy parts that a PC has and this machine has not: each line is measured, not asserted.
has() { # has NAME TEST...: a word for the legacy line
    name=$1
    shift
    if "$@"; then present="$present $name"; else absent="$absent $name"; fi
}
in_ioports() { case $ioports in *"$1"*) ;; *) return 1 ;; esac; }
in_classes() { case $classes in *" 0x$1"*) ;; *) return 1 ;; esac; }

slurp() { # slurp FILE: its lines in $text
    text=
    while IFS= read -r line; do
        text="$text$line
"
    done <"$1"
}

describe() { # describe VENDOR DEVICE CLASS: a name for a PCI function in $name
    case $1:$2 in
    0x1af4:0x1041) name="virtio network" ;;
    0x1af4:0x1042) name="virtio block" ;;
    0x1af4:0x1043) name="virtio console" ;;
    0x1af4:0x1044) name="virtio entropy" ;;
    0x1af4:0x1045) name="virtio balloon" ;;
    0x1af4:0x1048) name="virtio SCSI" ;;
    0x1af4:0x1053) name="virtio socket" ;;
    0x1af4:0x105a) name="virtio file system" ;;
    0x1af4:0x105b) name="virtio memory" ;;
    0x1af4:0x10[0-3]?) name="transitional virtio" ;;
    *) case $3 in
        0x0600*) name="host bridge" ;;
        0x0601*) name="ISA bridge" ;;
        0x0604*) name="PCI bridge" ;;
        0x0101*) name="IDE" ;;
        0x0106*) name="SATA" ;;
        0x0200*) name="network" ;;
        0x0300*) name="VGA" ;;
        0x0c05*) name="SMBus" ;;
        *) name="class $3" ;;
        esac ;;
    esac
}

row() { printf '%-11s %s\n' "$1" "$2"; }

show_pci() {
    classes=
    heading=PCI
    for device in /sys/bus/pci/devices/*; do
        [ -e "$device" ] || { row PCI none; return; }
        read -r vendor <"$device/vendor"
        read -r id <"$device/device"
        read -r class <"$device/class"
        classes="$classes $class"
        describe "$vendor" "$id" "$class"
        of=
        for node in "$device"/virtio*/block/* "$device"/virtio*/net/*; do
            [ -e "$node" ] && of=${node##*/}
        done
        printf '%-11s %s  %-19s %s:%s%s\n' \
            "$heading" "${device##*/0000:}" "$name" "${vendor#0x}" "${id#0x}" "${of:+  $of}"
        heading=
    done
}

show_devices() {
    for disk in /sys/class/block/[vs]d*; do
        [ -e "$disk/size" ] || continue
        read -r sectors <"$disk/size"
        row disk "${disk##*/}  $((sectors / 2048)) MiB"
    done
    for net in /sys/class/net/*; do
        [ "${net##*/}" = lo ] && continue
        [ -e "$net/address" ] || continue
        read -r address <"$net/address"
        row network "${net##*/}  $address"
    done
}

show() {
    slurp /proc/ioports
    ioports=$text
    read -r uptime _ </proc/uptime
    read -r _ _ release _ </proc/version
    read -r online </sys/devices/system/cpu/online
    read -r clock </sys/devices/system/clocksource/clocksource0/current_clocksource
    read -r timer </sys/devices/system/clockevents/clockevent0/current_device
    cpus=0 model=
    while IFS=: read -r key value; do
        case $key in
        processor*) cpus=$((cpus + 1)) ;;
        "model name"*) model=$value ;;
        esac
    done </proc/cpuinfo
    read -r _ memory _ </proc/meminfo

    echo
    row machine "nemu virt"
    row kernel "Linux $release, here ${uptime} s after its start"
    row CPUs "$cpus ($online) $model"
    row memory "$((memory / 1024)) MiB usable"
    row clocks "$clock, $timer"
    show_pci
    show_devices
    tables=$($bb stat -c '%n %s' /sys/firmware/acpi/tables/[A-Z]* 2>/dev/null)
    list=
    for word in $tables; do list="$list ${word##*/}"; done
    row ACPI "${list# }"
    heading=interrupts pic= pit=
    while IFS=: read -r number rest; do
        case $number in
        *[0-9])
            set -- $rest
            shift $cpus
            row "$heading" "${number##* }: $*"
            heading=
            case $* in
            XT-PIC*) pic=1 ;;
            *" timer") pit=1 ;;
            esac
            ;;
        esac
    done </proc/interrupts
    show_legacy
    echo
}

show_legacy() {
    absent= present= others= reserved=
    while IFS= read -r line; do
        case $line in
        *": dma1" | *": pic1" | *": pic2" | *": timer0" | *": timer1" | *": keyboard" | *": dma page reg" | *": dma2" | *": fpu")
            reserved="$reserved ${line##* : }," ;;
        *) others="$others ${line#"${line%%[! ]*}"}," ;;
        esac
    done </proc/ioports
    has PIC test -n "$pic"
    has PIT test -n "$pit"
    has RTC test -e /sys/class/rtc/rtc0
    has i8042 test -e /sys/devices/platform/i8042
    has HPET test -e /sys/firmware/acpi/tables/HPET
    has PM-timer in_ioports PM_TMR
    has CF8 in_ioports "PCI conf1"
    has ISA in_classes 0601
    has VGA in_classes 0300
    has IDE in_classes 0101
    row "no legacy" "${absent# } ${present:+   STILL THERE:$present}"
    row ports "in use:${others:- none}"
    row "" "reserved by Linux on any PC, present or not:${reserved%,}"
}

for word in $cmdline; do
    case $word in
    nemu.run=*)
        full
        word=${word#nemu.run=}
        command=$(printf %b. "${word//%/\\x}")
        sh -c "${command%.}"
        echo "nemu.status $?"
        off
        ;;
    nemu.shell)
        full
        echo "The small guest of nemu.  exit or ^D powers it off."
        $bb setsid $bb cttyhack sh
        off
        ;;
    esac
done
show
off
