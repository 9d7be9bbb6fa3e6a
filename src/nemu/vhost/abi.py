"""The kernel's vhost interface as data, under its names (include/uapi/linux/vhost.h and vhost_types.h).

``tests/unit/test_abi.py`` compares every number, size and offset here with the kernel's headers.
"""

from __future__ import annotations

from ctypes import Structure, c_int, c_uint32, c_uint64

from nemu.ioctl import Family

VHOST_VIRTIO = 0xAF
_vhost = Family(VHOST_VIRTIO)


class vhost_vring_state(Structure):
    _fields_ = [("index", c_uint32), ("num", c_uint32)]


class vhost_vring_file(Structure):
    _fields_ = [("index", c_uint32), ("fd", c_int)]


class vhost_vring_addr(Structure):
    _fields_ = [
        ("index", c_uint32),
        ("flags", c_uint32),
        ("desc_user_addr", c_uint64),
        ("used_user_addr", c_uint64),
        ("avail_user_addr", c_uint64),
        ("log_guest_addr", c_uint64),
    ]


class vhost_memory_region(Structure):
    _fields_ = [
        ("guest_phys_addr", c_uint64),
        ("memory_size", c_uint64),
        ("userspace_addr", c_uint64),
        ("flags_padding", c_uint64),
    ]


class vhost_memory(Structure):
    """Followed by ``nregions`` of vhost_memory_region."""

    _fields_ = [("nregions", c_uint32), ("padding", c_uint32)]


VHOST_FILE_UNBIND = -1

VHOST_GET_FEATURES = _vhost.ior("VHOST_GET_FEATURES", 0x00, c_uint64)
VHOST_SET_FEATURES = _vhost.iow("VHOST_SET_FEATURES", 0x00, c_uint64)
VHOST_SET_OWNER = _vhost.io("VHOST_SET_OWNER", 0x01)
VHOST_SET_MEM_TABLE = _vhost.iow("VHOST_SET_MEM_TABLE", 0x03, vhost_memory)
VHOST_SET_VRING_NUM = _vhost.iow("VHOST_SET_VRING_NUM", 0x10, vhost_vring_state)
VHOST_SET_VRING_ADDR = _vhost.iow("VHOST_SET_VRING_ADDR", 0x11, vhost_vring_addr)
VHOST_SET_VRING_BASE = _vhost.iow("VHOST_SET_VRING_BASE", 0x12, vhost_vring_state)
VHOST_SET_VRING_KICK = _vhost.iow("VHOST_SET_VRING_KICK", 0x20, vhost_vring_file)
VHOST_SET_VRING_CALL = _vhost.iow("VHOST_SET_VRING_CALL", 0x21, vhost_vring_file)
VHOST_SET_VRING_ERR = _vhost.iow("VHOST_SET_VRING_ERR", 0x22, vhost_vring_file)

# vhost-net
VHOST_NET_SET_BACKEND = _vhost.iow("VHOST_NET_SET_BACKEND", 0x30, vhost_vring_file)
VHOST_NET_F_VIRTIO_NET_HDR = 27  # bit: the backend has no virtio-net header, vhost adds and strips it

# vhost-vsock
VHOST_VSOCK_SET_GUEST_CID = _vhost.iow("VHOST_VSOCK_SET_GUEST_CID", 0x60, c_uint64)
VHOST_VSOCK_SET_RUNNING = _vhost.iow("VHOST_VSOCK_SET_RUNNING", 0x61, c_int)
