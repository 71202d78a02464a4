"""From the plays as web pages to the lines of each speaking role.

The pages are those of github.com/TheMITTech/shakespeare (shakespeare.mit.edu): full.html of each
play. A speech is the names of its speakers and a block of lines; speakers who speak together are a
role of their own. Lines outside of a speech belong to nobody.
"""

from __future__ import annotations

import html
import json
import re

_SPEECH = re.compile(r"<A NAME=speech\d+>(.*?)<blockquote>(.*?)</blockquote>", re.I | re.S)
_LINE = re.compile(r"<A NAME=[\d.]+>(.*?)</A>", re.I | re.S)
_TAG = re.compile(r"<[^>]*>")


def lines_of_roles(page: str) -> dict[str, list[str]]:
    """The lines of each role in the order of the play, roles by their first line."""
    roles: dict[str, list[str]] = {}
    for speakers, block in _SPEECH.findall(page):
        lines = [" ".join(_plain(line).split()) for line in _LINE.findall(block)]
        if spoken := [line for line in lines if line]:
            roles.setdefault(_plain(speakers).strip(), []).extend(spoken)
    return roles


def encode_plays(pages: dict[str, str]) -> bytes:
    """One JSON object a role, `play`, `role` and `lines`, plays in the order of their names."""
    return b"".join(
        json.dumps({"play": play, "role": role, "lines": lines}).encode() + b"\n"
        for play, page in sorted(pages.items())
        for role, lines in lines_of_roles(page).items()
    )


def _plain(text: str) -> str:
    return html.unescape(_TAG.sub("", text))
