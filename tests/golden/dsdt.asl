// The DSDT of a machine with two CPUs, the platform devices, a serial port, and a 64-bit PCI
// window from 512 GiB to 1 TiB.  Written by hand; the tests compare it with what nemu makes.
DefinitionBlock ("", "DSDT", 2, "NEMU  ", "NEMUVIRT", 1)
{
    Scope (_SB)
    {
        Device (MBRD)
        {
            Name (_HID, EisaId ("PNP0C02"))
            Name (_UID, 0)
            Name (_CRS, ResourceTemplate ()
            {
                Memory32Fixed (ReadWrite, 0x80000000, 0x10000000)   // ECAM
                Memory32Fixed (ReadWrite, 0xFEA00000, 0x00002000)   // power, GED
                Memory32Fixed (ReadWrite, 0xFEA03000, 0x0000D000)   // not used yet
            })
        }

        Device (PCI0)
        {
            Name (_HID, EisaId ("PNP0A08"))
            Name (_CID, EisaId ("PNP0A03"))
            Name (_UID, 0)
            Name (_SEG, 0)
            Name (_BBN, 0)
            Name (_CRS, ResourceTemplate ()
            {
                WordBusNumber (ResourceProducer, MinFixed, MaxFixed, PosDecode,
                    0, 0x00, 0x00, 0, 0x01)
                DWordMemory (ResourceProducer, PosDecode, MinFixed, MaxFixed, NonCacheable, ReadWrite,
                    0, 0x90000000, 0xFE9FFFFF, 0, 0x6EA00000)
                QWordMemory (ResourceProducer, PosDecode, MinFixed, MaxFixed, NonCacheable, ReadWrite,
                    0, 0x8000000000, 0xFFFFFFFFFF, 0, 0x8000000000)
            })
            Method (_OSC, 4, Serialized)
            {
                CreateDWordField (Arg3, 0, STAT)
                If (Arg0 == ToUUID ("33DB4D5B-1FF7-401C-9657-7441C03DD766"))
                {
                    CreateDWordField (Arg3, 8, CTRL)
                    Local0 = CTRL & 0x3C            // PME, AER, PCIe capability, LTR
                    If (Arg1 != 1) { STAT |= 0x08 } // unknown revision
                    If (CTRL != Local0) { STAT |= 0x10 }
                    CTRL = Local0
                }
                Else
                {
                    STAT |= 0x04                    // unknown UUID
                }
                Return (Arg3)
            }
        }

        Device (C000)
        {
            Name (_HID, "ACPI0007")
            Name (_UID, 0)
            Name (_STA, 0x0F)
        }

        Device (C001)
        {
            Name (_HID, "ACPI0007")
            Name (_UID, 1)
            Name (_STA, 0x0F)
        }

        Device (PWRB)
        {
            Name (_HID, EisaId ("PNP0C0C"))
            Name (_UID, 0)
        }

        Device (GED)
        {
            Name (_HID, "ACPI0013")
            Name (_UID, 0)
            Name (_CRS, ResourceTemplate ()
            {
                Interrupt (ResourceConsumer, Edge, ActiveHigh, Exclusive) { 16 }
            })
            OperationRegion (REGS, SystemMemory, 0xFEA01000, 8)
            Field (REGS, DWordAcc, NoLock, Preserve)
            {
                PEND, 32,
                ACKN, 32
            }
            Method (_EVT, 1, Serialized)
            {
                While (Local0 = PEND)
                {
                    ACKN = Local0                   // before acting: a later event stays pending
                    If (Local0 & 1) { Notify (PWRB, 0x80) }
                }
            }
        }

        Device (PEVT)
        {
            Name (_HID, "QEMU0001")
            Name (_UID, 0)
            Name (_STA, 0x0F)
            Name (_CRS, ResourceTemplate ()
            {
                Memory32Fixed (ReadWrite, 0xFEA02000, 1)
            })
        }

        Device (COM1)
        {
            Name (_HID, EisaId ("PNP0501"))
            Name (_UID, 0)
            Name (_CRS, ResourceTemplate ()
            {
                IO (Decode16, 0x3F8, 0x3F8, 1, 8)
                Interrupt (ResourceConsumer, Edge, ActiveHigh, Exclusive) { 17 }
            })
        }
    }

    Name (_S5, Package () { 5, 0, 0, 0 })
}
