"""SCSI targets: what a command does (SPC-4, SBC-3), and nothing about how it comes here."""
