"""Which files are images, by their names: those that are read here, and those that are not."""

from __future__ import annotations

import importlib

from PIL import features

HEIF = (".heic", ".heif")  # what phones of Apple write; of the extra `heic`


def _reads_heif() -> bool:
    """Whether the package that decodes them is installed; Pillow opens them from here on."""
    try:
        importlib.import_module("pillow_heif").register_heif_opener()
    except ImportError:
        return False
    return True


IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".bmp", ".dib", ".gif", ".webp"),
    *(".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".j2k", ".tga", ".ico"),
    *((".avif",) if features.check("avif") else ()),
    *(HEIF if _reads_heif() else ()),
)
UNREADABLE_SUFFIXES = (  # images all the same
    *(".heic", ".heif", ".avif", ".jxl", ".svg", ".psd", ".xcf", ".dcm", ".nii", ".exr", ".hdr"),
    *(".raw", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf", ".pef", ".srw"),
)
MAGIC = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"BM", b"RIFF", b"II*\0", b"MM\0*")


def remedy(suffixes: set[str]) -> str:
    """What to do about images of these kinds, none of which can be read here."""
    convert = "convert them to .jpg or .png, or take them out"
    return f"pip install pillow-heif, or {convert}" if suffixes <= set(HEIF) else convert
