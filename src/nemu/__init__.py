"""nemu: a virtual machine monitor without legacy hardware, on Linux KVM."""

__version__ = "0.1.0"
