// What a machine with room for two CPUs, one memory device and one PCI slot adds to \_SB.  Written by hand; the
// tests compare it with what nemu makes.
DefinitionBlock ("", "DSDT", 2, "NEMU  ", "NEMUVIRT", 1)
{
    Scope (_SB)
    {
        Device (PCI0)
        {
            Name (_HID, EisaId ("PNP0A08"))
        }

        Device (PLG1)
        {
            Name (_HID, EisaId ("PNP0A06"))
            Name (_UID, "PLG1")
            OperationRegion (REGS, SystemMemory, 0xFEA05000, 24)
            Field (REGS, DWordAcc, NoLock, Preserve)
            {
                EVNT, 32,       // slot << 8 | notification
                ACKN, 32,
                EJCT, 32,
                OSLT, 32,
                OEVT, 32,
                OSTA, 32
            }
            OperationRegion (STAT, SystemMemory, 0xFEA05400, 2)
            Field (STAT, ByteAcc, NoLock, Preserve) { S000, 8, S001, 8 }
            Method (NTFY, 2, Serialized)
            {
                If (Arg0 == 0) { Notify (\_SB.C000, Arg1) }
                If (Arg0 == 1) { Notify (\_SB.C001, Arg1) }
            }
            Method (SCAN, 0, Serialized)
            {
                While (Local0 = EVNT)
                {
                    ACKN = Local0
                    NTFY (Local0 >> 8, Local0 & 0xFF)
                }
            }
            Method (REPO, 3, Serialized)
            {
                OSLT = Arg0
                OEVT = Arg1
                OSTA = Arg2
            }
        }

        Device (C000)
        {
            Name (_HID, "ACPI0007")
            Name (_UID, 0)
            Name (_MAT, Buffer () { 0, 8, 0, 0, 1, 0, 0, 0 })
            Method (_STA, 0, Serialized) { Return (\_SB.PLG1.S000) }
            Method (_EJ0, 1, Serialized) { \_SB.PLG1.EJCT = 0 }
            Method (_OST, 3, Serialized) { \_SB.PLG1.REPO (0, Arg0, Arg1) }
        }

        Device (C001)
        {
            Name (_HID, "ACPI0007")
            Name (_UID, 1)
            Name (_MAT, Buffer () { 0, 8, 1, 1, 1, 0, 0, 0 })
            Method (_STA, 0, Serialized) { Return (\_SB.PLG1.S001) }
            Method (_EJ0, 1, Serialized) { \_SB.PLG1.EJCT = 1 }
            Method (_OST, 3, Serialized) { \_SB.PLG1.REPO (1, Arg0, Arg1) }
        }

        Device (M000)
        {
            Name (_HID, EisaId ("PNP0C80"))
            Name (_UID, 0)
            OperationRegion (DESC, SystemMemory, 0xFEA05800, 16)
            Field (DESC, QWordAcc, NoLock, Preserve) { BASE, 64, SIZE, 64 }
            Name (CBUF, ResourceTemplate ()
            {
                QWordMemory (ResourceConsumer, PosDecode, MinFixed, MaxFixed, Cacheable, ReadWrite,
                    0, 0x0, 0xFFFFFFFF, 0, 0x100000000)
            })
            CreateQWordField (CBUF, 14, CMIN)
            CreateQWordField (CBUF, 22, CMAX)
            CreateQWordField (CBUF, 38, CLEN)
            Method (_CRS, 0, Serialized)
            {
                CMIN = BASE
                CLEN = SIZE
                CMAX = BASE + SIZE - 1
                Return (CBUF)
            }
            Method (_STA, 0, Serialized) { Return (\_SB.PLG1.S000) }
            Method (_EJ0, 1, Serialized) { \_SB.PLG1.EJCT = 0 }
            Method (_OST, 3, Serialized) { \_SB.PLG1.REPO (0, Arg0, Arg1) }
        }

        Scope (PCI0)
        {
            Device (S001)
            {
                Name (_ADR, 0x00010000)
                Name (_SUN, 1)
                Method (_EJ0, 1, Serialized) { \_SB.PLG1.EJCT = 1 }
                Method (_OST, 3, Serialized) { \_SB.PLG1.REPO (1, Arg0, Arg1) }
            }
        }
    }
}
