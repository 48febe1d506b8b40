"""Speaks a sentence with espeak-ng, in this process, through ctypes.

espeak-ng is under GPL-3; this is the only file that touches it, and it is needed only to make
the embedded corpus. Not thread-safe: the library's state is global.
"""

from __future__ import annotations

import _ctypes
import ctypes
from typing import Any, NamedTuple

import numpy as np

SAMPLE_RATE = 22_050

# Constants of espeak-ng's speak_lib.h.
_SYNCHRONOUS = 2  # audio goes to the callback, and espeak_Synth returns once all of it has
_DONT_EXIT = 0x8000  # a failing start returns an error rather than ending the process
_UTF8 = 1
_CHARACTERS = 1  # unit of espeak_Synth's `position`
_RATE, _PITCH, _RANGE = 1, 3, 4
_LAST_EVENT, _WORD_EVENT = 0, 1


class EspeakError(RuntimeError):
    """espeak-ng is missing or refused; the message says what to do."""


class _Event(ctypes.Structure):
    """espeak_EVENT; its union `id` is as wide as its longest member, eight characters."""

    _fields_ = (
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", ctypes.c_char * 8),
    )


_Callback = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event)
)


class Speech(NamedTuple):
    """One spoken sentence.

    Attributes:
        waveform: int16[T] at `SAMPLE_RATE`.
        words: for each word event, the word's first character in the text and the sample at
            which it starts. Where espeak-ng runs words into one ("on the") it reports the first.
    """

    waveform: np.ndarray
    words: list[tuple[int, int]]


def speak(text: str, voice: str, rate: int, pitch: int = 50, pitch_range: int = 50) -> Speech:
    """Speaks `text`; the same arguments give the same samples, whatever was spoken before.

    Args:
        text: one sentence.
        voice: an accent and optionally a variant, such as "en-us+f3".
        rate: words a minute, 80 to 450.
        pitch: 0 to 100; 50 is the voice's own.
        pitch_range: 0 (monotone) to 100; 50 is the voice's own.

    Raises:
        EspeakError: the library is not installed or does not start, or there is no such voice.
    """
    # espeak-ng carries phases, echoes and noise over from one sentence to the next and has no
    # call that resets them: a library loaded afresh, in half a millisecond, knows no past.
    library = _load()
    try:
        return _speak(library, text, voice, rate, pitch, pitch_range)
    finally:
        library.espeak_Terminate()
        _ctypes.dlclose(library._handle)


def _load() -> Any:
    try:
        import espeakng_loader
    except ImportError:
        raise EspeakError(
            "the embedded corpus is spoken by espeak-ng, which is not installed: "
            "run pip install espeakng-loader"
        ) from None
    library = ctypes.CDLL(espeakng_loader.get_library_path())
    data = espeakng_loader.get_data_path().encode()
    rate = library.espeak_Initialize(_SYNCHRONOUS, 0, data, _DONT_EXIT)
    if rate != SAMPLE_RATE:
        raise EspeakError(f"espeak-ng did not start ({rate}): reinstall espeakng-loader")
    library.espeak_ng_SetRandSeed(ctypes.c_long(1))
    return library


def _speak(library: Any, text: str, voice: str, rate: int, pitch: int, range_: int) -> Speech:
    chunks: list[np.ndarray] = []
    words: list[tuple[int, int]] = []

    def receive(samples: Any, count: int, events: Any) -> int:
        if samples and count > 0:
            chunks.append(np.ctypeslib.as_array(samples, (count,)).copy())
        i = 0
        while events[i].type != _LAST_EVENT:
            if events[i].type == _WORD_EVENT:
                words.append((events[i].text_position - 1, events[i].sample))
            i += 1
        return 0

    callback = _Callback(receive)  # must outlive espeak_Synth
    library.espeak_SetSynthCallback(callback)
    if library.espeak_SetVoiceByName(voice.encode()) != 0:
        raise EspeakError(f"espeak-ng has no voice {voice!r}")
    for parameter, value in ((_RATE, rate), (_PITCH, pitch), (_RANGE, range_)):
        library.espeak_SetParameter(parameter, value, 0)
    encoded = text.encode() + b"\0"
    size = ctypes.c_size_t(len(encoded))
    library.espeak_Synth(encoded, size, 0, _CHARACTERS, 0, _UTF8, None, None)
    silence = np.zeros(0, np.int16)
    return Speech(np.concatenate(chunks) if chunks else silence, words)
