"""A reader of the driver's context-switch trace of its own, for what is true of shared GPUs.

It says which process was on the GPU when; the services say when they had a request open. A second
reader beside the exporter's gets every record as well.
"""

import ctypes
import fcntl
import mmap
import os
import struct
import threading
import time

RECORDS, BYTES = 32768, 32
START, END = 6, 7


class Switches(threading.Thread):
    """Keeps (pid, from, to) of every visit, seconds since 1970 in the driver's clock."""

    def __init__(self, minor, domain, bus, slot):
        super().__init__(daemon=True)
        self.control = os.open("/dev/nvidiactl", os.O_RDWR)
        self.gpu = os.open(f"/dev/nvidia{minor}", os.O_RDWR)
        self.handle = 0x0c7b0000
        self.client = self.alloc(0, 0, b"", root=True)
        self.ioctl(self.gpu, 201, bytearray(struct.pack("i", self.control)))
        device, subdevice = self.instance(domain, bus, slot)
        device = self.alloc(self.client, 0x80, struct.pack("I", device))
        subdevice = self.alloc(device, 0x2080, struct.pack("I", subdevice))
        header, ring = self.memory(4096), self.memory(RECORDS * BYTES)
        self.buffer = self.alloc(self.client, 0x90cd, struct.pack("<16xII28xI4xII4x", BYTES, RECORDS, subdevice, header, ring))
        self.header, self.ring = self.map(header, 4096), self.map(ring, RECORDS * BYTES)
        self.command(self.buffer, 0x90cd0101, struct.pack("II", 1, 1))
        self.command(subdevice, 0x20801238, struct.pack("IIIIII", self.buffer, BYTES, 0, 0, 1, 0))
        self.visits, self.lost, self.over = [], 0, False
        self.start()

    def ioctl(self, file, number, call):
        fcntl.ioctl(file, 3 << 30 | len(call) << 16 | ord("F") << 8 | number, call)
        return call

    def alloc(self, parent, kind, parameters, root=False):
        self.handle += 1
        kept = ctypes.create_string_buffer(parameters, 512)
        new = 0 if root else self.handle
        call = bytearray(struct.pack("<IIIIQII", 0 if root else self.client, parent, new, kind, 0 if root else ctypes.addressof(kept), 0, 0))
        call = self.ioctl(self.control, 0x2b, call)
        status = struct.unpack_from("I", call, 28)[0]
        assert status == 0, f"allocating {kind:#x}: status {status:#x}"
        return struct.unpack_from("I", call, 8)[0]

    def command(self, target, command, parameters):
        kept = ctypes.create_string_buffer(parameters, len(parameters))
        call = bytearray(struct.pack("<IIIIQII", self.client, target, command, 0, ctypes.addressof(kept), len(parameters), 0))
        status = struct.unpack_from("I", self.ioctl(self.control, 0x2a, call), 28)[0]
        assert status == 0, f"command {command:#x}: status {status:#x}"
        return kept.raw

    def instance(self, domain, bus, slot):
        ids = struct.unpack("32I", self.command(self.client, 0x201, b"\0" * 128))
        for gpu in ids[: ids.index(0xFFFFFFFF)]:
            if struct.unpack_from("<IHH", self.command(self.client, 0x21b, struct.pack("<IIHH", gpu, 0, 0, 0)), 4) == (domain, bus, slot):
                return struct.unpack_from("II", self.command(self.client, 0x202, struct.pack("I36x", gpu)), 8)
        raise AssertionError("the driver lists no such GPU")

    def memory(self, size):
        return self.alloc(self.client, 0x90ce, struct.pack("<24xII32xQ", 5 << 29, 1 << 22, size))

    def map(self, memory, size):
        file = os.open("/dev/nvidiactl", os.O_RDWR)
        call = bytearray(struct.pack("<IIIxxxxQQQIIii", self.client, self.client, memory, 0, size, 0, 0, 1, file, 0))
        status = struct.unpack_from("I", self.ioctl(self.control, 0x4e, call), 40)[0]
        assert status == 0, f"mapping: status {status:#x}"
        return mmap.mmap(file, size, mmap.MAP_SHARED, mmap.PROT_READ)

    def run(self):
        get, next_number, here, left = 0, None, None, None
        while not self.over:
            put = struct.unpack_from("I", self.header, 4)[0]
            while get != put:
                _, tag, _, number, _, pid, _, at = struct.unpack_from("<QBBHIIIQ", self.ring, get * BYTES)
                if next_number is not None:
                    self.lost += (number - next_number) % 65536
                next_number = (number + 1) % 65536
                if tag == START:
                    here = (pid, left or at)
                elif tag == END:
                    if here and here[0] == pid:
                        self.visits.append((pid, here[1] / 1e9, at / 1e9))
                    here, left = None, at
                get = (get + 1) % RECORDS
            self.command(self.buffer, 0x90cd0102, struct.pack("II", get, 0))
            time.sleep(0.5)

    def stop(self):
        self.over = True
        self.join()
        os.close(self.control)
        return self.visits


def occupied(visits, requests, begin, end, shift):
    """Seconds in which a request was open while its process was on the GPU; `shift` is added to the requests' times."""
    total, first = 0.0, 0
    for came, went in visits:
        came, went = max(came, begin), min(went, end)
        if came >= went:
            continue
        while first < len(requests) and requests[first][1] + shift < came:
            first += 1
        at = first
        while at < len(requests) and requests[at][0] + shift < went:
            total += max(0.0, min(requests[at][1] + shift, went) - max(requests[at][0] + shift, came))
            at += 1
    return total


def clock_shift(visits, requests, begin, end):
    """How far the driver's clock is from the requests', s: where they fit together best."""
    def fit(shift):
        return sum(occupied(v, r, begin, end, shift) for v, r in zip(visits, requests))

    coarse = max((n / 1000 for n in range(-40, 41)), key=fit)
    return max((coarse + n / 10000 for n in range(-10, 11)), key=fit)
