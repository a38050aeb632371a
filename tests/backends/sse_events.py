"""What a stream says, event by event."""

from __future__ import annotations

import json


def decoded(out: bytes) -> list:
    assert out == b"" or out.endswith(b"\n\n")
    events = out.split(b"\n\n")[:-1]
    return [
        json.loads(b"\n".join(line[5:] for line in event.split(b"\n")))
        if event.startswith(b"data:")
        else event
        for event in events
    ]
