"""What is said on the network when a guest is somewhere else: by the guest, or by the device in its name."""

import socket
import sys

# Of a port of a bridge, only a socket for everything sees what comes in.
LISTEN = """
import errno, socket, sys
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
s.bind((sys.argv[1], 3))
print("listening", flush=True)
frame = ""
while not frame.startswith(sys.argv[2]):
    try:
        frame = s.recv(2000).hex()
    except OSError as e:
        # The interface rests while it changes hands.
        if e.errno != errno.ENETDOWN:
            raise
print("heard", frame, flush=True)
"""
ALL, NOBODY = "ffffffffffff", "000000000000"


def arp(mac, address):
    """Gratuitous ARP, as Linux sends it when its device is told to announce it (RFC 826): who has its own address?"""
    mac, ip = mac.replace(":", ""), socket.inet_aton(address).hex()
    return ALL + mac + "0806" + "0001080006040001" + mac + ip + NOBODY + ip


def rarp(mac):
    """RARP for a guest that does not announce itself (RFC 903)."""
    mac = mac.replace(":", "")
    return ALL + mac + "8035" + "0001080006040003" + mac


def listen(netns, interface, frame):
    """Listens for a frame that begins like this; to be expected as "heard"."""
    listener = netns.spawn([sys.executable, "-c", LISTEN, interface, frame], f"announced-{interface}")
    listener.expect("listening")
    return listener
