"""Masks for personal data that a pattern can find: e-mail addresses and public IP addresses.

The masks are those of Dolma (Soldaini et al. 2024, section 3.1.4). They match no pattern of their own, so masking
twice is masking once, and they hold no character that Unicode normalisation could join to its neighbour.
"""

from __future__ import annotations

import ipaddress
import re
from typing import Literal

Kind = Literal["email", "ip"]
MASKS: dict[Kind, str] = {"email": "|||EMAIL_ADDRESS|||", "ip": "|||IP_ADDRESS|||"}

# Bounded repetitions keep the search linear: RFC 5321 allows 64 characters before the @ and 63 in each label.
_EMAIL = re.compile(
    r"(?<![A-Za-z0-9._%+-])[A-Za-z0-9._%+-]{1,64}@(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,62})\.){1,8}[A-Za-z]{2,24}(?![A-Za-z0-9])"
)
_IPV4 = re.compile(r"\b(?<!\.)\d{1,3}(?:\.\d{1,3}){3}(?![\w]|\.\d)")
_IPV6 = re.compile(r"(?<![\w:.])[0-9A-Fa-f]{1,4}(?::{1,2}[0-9A-Fa-f]{1,4}){2,7}(?:::)?(?![\w:])")

#: What every address of the kind has in it; looked for first, since most texts have none and this is fast.
_IN_IPV4, _IN_IPV6 = re.compile(r"\.\d{1,3}\.\d"), re.compile(r":[0-9A-Fa-f]{1,4}:")


def mask_pii(text: str, kinds: tuple[Kind, ...] = ("email", "ip")) -> tuple[str, dict[str, int]]:
    """`text` with the addresses replaced by their masks, and how many of each kind were replaced.

    IP addresses count only if they are public: private, loopback and documentation addresses identify nobody (the
    rule of FineWeb's formatter). A four-part version number looks like an IPv4 address and is masked as one.
    """
    counts: dict[str, int] = dict.fromkeys(kinds, 0)
    if "email" in kinds and "@" in text:
        text, counts["email"] = _EMAIL.subn(MASKS["email"], text)
    if "ip" in kinds:
        masked = 0

        def replace(match: re.Match[str]) -> str:
            nonlocal masked
            if not _is_public(match.group()):
                return match.group()
            masked += 1
            return MASKS["ip"]

        if _IN_IPV4.search(text):
            text = _IPV4.sub(replace, text)
        if _IN_IPV6.search(text):
            text = _IPV6.sub(replace, text)
        counts["ip"] = masked
    return text, counts


def _is_public(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_global
    except ValueError:
        return False
