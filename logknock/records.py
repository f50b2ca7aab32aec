"""What a record of a firewall's log says, in text: bytes come in, a Packet or None goes out.

Rule 1: pure; no clock, no file. Rule 2: every byte may have been chosen by an attacker. What is not exactly what the
kernel, ulogd2 or journald writes is "no packet", never an exception. Rule 3: a field counts in its place and nowhere
else. A record is matched from its first byte to its last, so that what looks like a field inside another one (in an
interface's name, in the header that an ICMP error quotes) is never taken for it, and a record that was cut short is
not taken for one that was not. Rule 4: nothing in a pattern repeats without a bound, so that what a line costs
never grows faster than its length.

Sources: net/netfilter/nf_log_syslog.c of Linux 6.18 (the fields, their order and widths; older kernels write the same
from several files), util/printpkt.c and output/ulogd_output_JSON.c of ulogd2 2.0.8, systemd's journal export formats
and systemd.journal-fields(7).
"""

import json
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from ipaddress import ip_address
from itertools import product
from typing import NamedTuple

from .packet import ACK, FIN, PSH, RST, SYN, TCP, UDP, URG, Packet, bare
from .stamps import Dates

# A longer line is no record. The kernel writes at most 1,023 bytes (nf_log_buf), and a journal entry as JSON, with all
# the fields that a kernel entry has, is about twice that.
MAX_LINE = 8192

ECE, CWR = 0x40, 0x80


class Wanted(NamedTuple):
    """Which records count.

    prefixes: the rule's prefix must be one of them, but for what bare() leaves out; "": records without any.
    directions: "in" (packets that came in), "forward" (that pass through), "out" (that are made here).
    """

    prefixes: tuple[str, ...] = ("logknock",)
    directions: frozenset[str] = frozenset({"in"})


# An interface's name: up to 15 bytes without blanks and slashes (IFNAMSIZ, dev_valid_name), and no control characters.
_NAME = rb"[^\x00- /\x7f]{1,15}"
_BETWEEN = {
    "in": rb"IN=" + _NAME + rb" OUT= ",
    "forward": rb"IN=" + _NAME + rb" OUT=" + _NAME + rb" ",
    "out": rb"IN= OUT=" + _NAME + rb" ",
}

_DIRECTIONS = {(True, False): "in", (True, True): "forward", (False, True): "out"}  # by IN= and OUT= being set

_PORT = rb"(0|[1-9]\d{0,4})"
_MAC = rb"(?:[\da-f]{2}:){5}[\da-f]{2}"
_OPTIONS = rb"OPT \([\dA-F]{2,80}\)"

# What follows IN= and OUT=. Missing on purpose, so that nothing behind them is read: MF, FRAG, INCOMPLETE, TRUNCATED,
# "Unknown Ext Hdr", ARP, the header that ICMP errors quote. ulogd2 writes no 0x before TOS, no RES, always SEQ and ACK,
# and IPv6 addresses in their short form; the kernel writes CE, PHYSIN, MACSRC and the options.
_FIELDS = (
    rb"(?:PHYSIN=" + _NAME + rb" (?:PHYSOUT=" + _NAME + rb" )?|PHYSOUT=" + _NAME + rb" )?"
    rb"(?:MAC=[\da-f:]{0,255} (?:TUNNEL=[\d.]{7,15}->[\d.]{7,15} )?"
    rb"|MACSRC=" + _MAC + rb" MACDST=" + _MAC + rb" (?:VPROTO=[\da-f]{4} VID=\d{1,4} )?MACPROTO=[\da-f]{4} )?"
    rb"SRC=([^ ]{2,45}) DST=([^ ]{2,45}) LEN=\d{1,7} "
    rb"(?:TOS=(?:0x)?[\dA-F]{2} PREC=0x[\dA-F]{2} TTL=\d{1,3} ID=\d{1,5} (?:DF |CE (?:DF )?)?(?:" + _OPTIONS + rb" )?"
    rb"|TC=\d{1,3} HOPLIMIT=\d{1,3} FLOWLBL=\d{1,7} (?:OPT \( (?:AH SPI=0x[\da-f]{1,8} )?\) ){0,9})"
    rb"PROTO=(?:(?P<tcp>T)CP|UDP) SPT=" + _PORT + rb" DPT=" + _PORT + rb" (?(tcp)"
    rb"(?:SEQ=\d{1,10} ACK=\d{1,10} )?WINDOW=\d{1,5} (?:RES=0x[\da-f]{2} )?([^=]{0,36})URGP=\d{1,5}"
    rb"(?: " + _OPTIONS + rb")?|LEN=\d{1,5})"
    rb"(?: ?\Z|(?: UID=\d{1,10} GID=\d{1,10})?(?: MARK=0x[\da-f]{1,8})?[ \r]{0,4})"
)

# What may stand before the prefix. The tag is exactly `kernel:` or there is none (ulogd2's LOGEMU); a host's name does
# not end in a colon, since a tag does. A priority below 8 is the kernel's. Whether a date is one is for Dates to say.
_HEAD = (
    rb"(?:<[0-7]>)?"
    rb"(?:(?:([A-Z].{14}(?:\.\d{1,9})?)"
    rb"|(\d.{18})(?:[.,](\d{1,9}))?(Z|[+-]\d\d:?\d\d)?)"
    rb" (?:[^ ]{1,255}(?<!:) )?)?"
    rb"(?:kernel: ?)?"
    rb"(?:\[ {0,8}(\d{1,10}\.\d{6})\](?:\[ {0,8}[CT]\d{1,10}\])? ?)?"
)

# The words for the flags in the order in which the kernel writes them. AE is no bit of the flags' byte (RFC 9768).
_WORDS = {b"AE ": 0, b"CWR ": CWR, b"ECE ": ECE, b"URG ": URG, b"ACK ": ACK, b"PSH ": PSH, b"RST ": RST, b"SYN ": SYN}
_WORDS[b"FIN "] = FIN
_FLAGS = {
    b"".join(words): sum(_WORDS.get(word, 0) for word in words) for words in product(*((b"", word) for word in _WORDS))
}
_JSON_FLAGS = {"tcp.fin": FIN, "tcp.syn": SYN, "tcp.rst": RST, "tcp.psh": PSH, "tcp.ack": ACK, "tcp.urg": URG}

_FROM_THE_KERNEL = ("kernel", "kernel", "0")
# What journald has not from the kernel has no stamp of the source.
_JOURNALS_STAMPS = ("__REALTIME_TIMESTAMP", "__MONOTONIC_TIMESTAMP", "_SOURCE_MONOTONIC_TIMESTAMP")
_BOOT_ID = 32  # its length
_MICROSECONDS = re.compile(r"[0-9]{1,17}").fullmatch
_ISO = re.compile(rb"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?(Z|[+-]\d\d:?\d\d)?").fullmatch
_FRAGMENT = 0x3FFF  # more fragments follow, or the offset (RFC 791)

_new = tuple.__new__  # what Packet(…) comes to, at a third of its cost
_OCTETS = {b"%d" % number: number for number in range(256)}  # 010 and 256 are no octets
_MAPPED = bytes(10) + b"\xff\xff"  # RFC 4291, 2.5.5.2


class Grammar:
    """Everything that records are written in, compiled once for those that are wanted."""

    def __init__(self, wanted: Wanted) -> None:
        self.wanted = wanted
        self._prefixes = frozenset(bare(prefix) for prefix in wanted.prefixes)
        record = _record(sorted(self._prefixes), sorted(wanted.directions))
        self._record = re.compile(record).fullmatch
        self._line = re.compile(_HEAD + record).fullmatch

    def from_kernel(self, message: bytes, time: float) -> Packet | None:
        """The packet of a kernel's record without any head, beginning with the rule's prefix; time: seconds (epoch)."""
        found = self._record(message)
        return _packet(time, *found.groups()) if found else None

    def from_line(self, line: bytes, dates: Dates) -> Packet | None:
        """The packet of a line of a file or a pipe, without its newline.

        Bare, as dmesg prints it, behind a head of rsyslog or syslog-ng; ulogd2's LOGEMU and JSON; journalctl's JSON.
        """
        if len(line) > MAX_LINE:
            return None
        found = self._line(line)
        if found is None:
            return self._from_another(line, dates)
        head, date, fraction, zone, uptime, src, dst, tcp, sport, dport, words = found.groups()
        time: float | None
        if head is not None:
            time = dates.syslog(head)
        elif date is not None:
            time = dates.iso(date, fraction, zone)
        else:
            time = dates.undated(float(uptime) if uptime else None)
        if time is None:
            return None
        if uptime and (head or date):
            time = dates.made(time, float(uptime))
        return _packet(time, src, dst, tcp, sport, dport, words)

    def _from_another(self, line: bytes, dates: Dates) -> Packet | None:
        """JSON, or a record with tabs where blanks are usual."""
        if b"\t" in line:
            return self.from_line(line.replace(b"\t", b" "), dates)
        entry = _object(line) if line.startswith(b"{") else {}
        return self._from_journal(entry, dates) if "_TRANSPORT" in entry else self._from_ulogd(entry, dates)

    def _from_journal(self, entry: Mapping[str, object], dates: Dates) -> Packet | None:
        """T22: whatever a local process sends, and wherever, fails one of the three conditions."""
        if tuple(entry.get(key) for key in ("_TRANSPORT", "SYSLOG_IDENTIFIER", "SYSLOG_FACILITY")) != _FROM_THE_KERNEL:
            return None
        stamps = [entry.get(key) for key in _JOURNALS_STAMPS]
        boot = entry.get("_BOOT_ID")
        if not (isinstance(boot, str) and all(isinstance(stamp, str) and _MICROSECONDS(stamp) for stamp in stamps)):
            return None
        realtime, monotonic, source = (int(str(stamp)) for stamp in stamps)
        time = dates.journal(boot[:_BOOT_ID].encode("utf-8", "replace"), realtime, monotonic, source)
        return self.from_kernel(_message(entry.get("MESSAGE")), time) if time is not None else None

    def _from_ulogd(self, entry: Mapping[str, object], dates: Dates) -> Packet | None:
        prefix, into, out = entry.get("oob.prefix"), entry.get("oob.in"), entry.get("oob.out")
        if not (isinstance(prefix, str) and isinstance(into, str) and isinstance(out, str)):
            return None
        if bare(prefix) not in self._prefixes or _DIRECTIONS.get((into != "", out != "")) not in self.wanted.directions:
            return None
        return _ulogd_packet(entry, dates)


def _record(prefixes: Sequence[str], directions: Sequence[str]) -> bytes:
    """The pattern of a record; one group each for source, destination, TCP, the two ports and the words for flags."""
    prefix = b"|".join(re.escape(prefix.encode()) for prefix in prefixes)
    between = b"|".join(_BETWEEN[direction] for direction in directions) or rb"(?!)"
    return rb"[ \t]{0,8}(?:" + prefix + rb")[ \t:]{0,16}(?:" + between + rb")" + _FIELDS


def _packet(
    time: float,
    src_text: bytes,
    dst_text: bytes,
    tcp: bytes | None,
    sport_text: bytes,
    dport_text: bytes,
    words: bytes | None,
) -> Packet | None:
    src, dst = _address(src_text), _destination(dst_text)
    sport, dport = int(sport_text), int(dport_text)
    if src is None or dst is None or len(src) != len(dst) or sport > 65535 or dport > 65535:
        return None
    if tcp is None or words is None:
        return _new(Packet, (time, src, dst, UDP, sport, dport, 0))
    flags = _FLAGS.get(words)
    return _new(Packet, (time, src, dst, TCP, sport, dport, flags)) if flags is not None else None


def _address(text: bytes) -> bytes | None:
    """The forms that the kernel writes; the others are left to ipaddress, which takes ten times as long."""
    try:
        if b":" not in text:
            a, b, c, d = text.split(b".")
            return bytes((_OCTETS[a], _OCTETS[b], _OCTETS[c], _OCTETS[d]))
        if len(text) == 39 and text[4::5] == b":::::::":
            packed = bytes.fromhex(text.replace(b":", b"").decode("ascii"))
            if len(packed) == 16 and packed[:12] != _MAPPED:
                return packed
    except (KeyError, ValueError):
        return None
    return _any_address(text.decode("ascii", "replace"))


# A host has few addresses, and a log that shows more of them than this only costs what it would cost without.
_destination = lru_cache(maxsize=1024)(_address)


def _any_address(text: str) -> bytes | None:
    """One form for one address (T27): an IPv4 address within IPv6 is that IPv4 address, and a zone is none."""
    if "%" in text:
        return None
    try:
        packed = ip_address(text).packed
    except ValueError:
        return None
    return packed if packed[:12] != _MAPPED else packed[12:]


def _object(line: bytes) -> dict[str, object]:
    """The JSON object that the line is; one without members if it is none."""
    try:
        value = _decode(line.decode())
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _members(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """A member that is there twice hides one that somebody else may have read: no program here writes that."""
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError
    return members


# Made once: json.loads would make one for each line.
_decode = json.JSONDecoder(object_pairs_hook=_members).decode


def _message(value: object) -> bytes:
    """A journal field: text, or a list of bytes where it holds what is not UTF-8 or not printable; b"" if neither."""
    if isinstance(value, str):
        return value.encode("utf-8", "surrogatepass")
    if isinstance(value, list):
        try:
            return bytes(value)
        except (TypeError, ValueError):
            return b""
    return b""


def _ulogd_packet(entry: Mapping[str, object], dates: Dates) -> Packet | None:
    src, dst = _json_address(entry.get("src_ip")), _json_address(entry.get("dest_ip"))
    sport, dport = _number(entry.get("src_port")), _number(entry.get("dest_port"))
    fragment = _number(entry.get("ip.fragoff", 0))
    if src is None or dst is None or len(src) != len(dst) or sport is None or dport is None:
        return None
    if fragment is None or fragment & _FRAGMENT or "ip6.fragoff" in entry or "ip6.fragid" in entry:
        return None
    proto, flags = _number(entry.get("ip.protocol")), _ulogd_flags(entry)
    if proto not in (TCP, UDP) or (flags is None) == (proto == TCP):
        return None
    time = _ulogd_time(entry, dates)
    return Packet(time, src, dst, proto, sport, dport, flags or 0) if time is not None else None


def _json_address(value: object) -> bytes | None:
    return _address(value.encode("utf-8", "replace")) if isinstance(value, str) else None


def _number(value: object, most: int = 65535) -> int | None:
    """A number that is neither text, nor a truth value, nor a fraction; unless told otherwise one of 16 bits."""
    return value if type(value) is int and 0 <= value <= most else None


def _ulogd_flags(entry: Mapping[str, object]) -> int | None:
    """ulogd2 tells all of them (ECE and CWR as the two bits of res2) or, where there is no whole TCP header, none."""
    rest = _number(entry.get("tcp.res2", 0), 3)
    if rest is None:
        return None
    flags = rest << 6
    for key, flag in _JSON_FLAGS.items():
        value = entry.get(key)
        if value == 1:
            flags |= flag
        elif value != 0:
            return None
    return flags


def _ulogd_time(entry: Mapping[str, object], dates: Dates) -> float | None:
    """The packet's own time where the kernel told it; else when ulogd2 wrote the line, local time without a zone."""
    if "oob.time.sec" in entry:
        second, part = _number(entry["oob.time.sec"], 2**32), _number(entry.get("oob.time.usec", 0), 999_999)
        return dates.epoch(second * 1_000_000 + part) if second is not None and part is not None else None
    stamp = entry.get("timestamp", entry.get("@timestamp"))
    if stamp is None:
        return dates.undated()
    found = _ISO(stamp.encode("ascii", "replace")) if isinstance(stamp, str) else None
    return dates.iso(*found.groups()) if found else None
