"""Uploads that no honest client sends, each with the codes that may answer it."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image

PNG = b"\x89PNG\r\n\x1a\n"
MB = 1_000_000


@dataclass(frozen=True)
class Upload:
    what: str
    kind: str
    """Content-Type."""
    body: bytes | tuple[bytes, int]
    """The bytes; or a piece and how often it is sent, chunked, without a length."""
    codes: tuple[int, ...] = (422,)

    def pieces(self) -> Iterator[bytes]:
        assert isinstance(self.body, tuple)
        for _ in range(self.body[1]):
            yield self.body[0]


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(width: int, height: int, data: bytes, *more: bytes) -> bytes:
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"".join([PNG, chunk(b"IHDR", head), *more, chunk(b"IDAT", data), chunk(b"IEND", b"")])


def zeros(megabytes: int) -> bytes:
    """So many MB of zeros, deflated: about a thousandth."""
    packer = zlib.compressobj(9)
    return b"".join([*(packer.compress(bytes(MB)) for _ in range(megabytes)), packer.flush()])


def encoded(kind: str, mode: str = "RGB", side: int = 64, number: int = 0) -> bytes:
    rng = np.random.default_rng(number)
    image = Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8)).convert(mode)
    with io.BytesIO() as file:
        image.save(file, kind)
        return file.getvalue()


def form(content: bytes, head: bytes = b'Content-Disposition: form-data; name="image"; filename="x.png"') -> bytes:
    return b"--xyz\r\n" + head + b"\r\n\r\n" + content + b"\r\n--xyz--\r\n"


def many_pages() -> bytes:
    raw = encoded("TIFF", "L", 1)
    begin = struct.unpack("<I", raw[4:8])[0]
    directory = raw[begin:begin + 2 + 12 * struct.unpack("<H", raw[begin:begin + 2])[0]]
    pages = bytearray(raw[:begin])
    while len(pages) < 10 * MB:
        pages += directory + struct.pack("<I", len(pages) + len(directory) + 4)
    return bytes(pages)


def bombs() -> list[Upload]:
    jpeg = bytearray(encoded("JPEG"))
    place = jpeg.index(b"\xff\xc0") + 5
    jpeg[place:place + 4] = struct.pack(">HH", 60000, 60000)
    bmp = bytearray(encoded("BMP"))
    bmp[18:26] = struct.pack("<ii", 40000, 40000)
    bomb = zeros(300)
    text = zlib.compress(bytes(50 * MB), 9)
    return [
        Upload("a PNG that says 50000x50000", "image/png", png(50000, 50000, zlib.compress(b"\0" * 100))),
        Upload("a PNG of just too many pixels", "image/png", png(10000, 5001, zlib.compress(b"\0"))),
        Upload("a PNG of 10000x10000 whose data are there", "image/png", png(10000, 10000, bomb)),
        Upload("a PNG of 0x0", "image/png", png(0, 0, zlib.compress(b""))),
        Upload("a PNG of a negative width", "image/png", png(0xFFFFFFFF, 1, zlib.compress(b"\0"))),
        Upload("a small PNG whose data unpack to 300 MB", "image/png", png(64, 64, bomb)[:-20]),
        Upload("a PNG whose text unpacks to 50 MB", "image/png",
               png(64, 64, zlib.compress(b"\0"), chunk(b"zTXt", b"x\0\0" + text), chunk(b"iCCP", b"x\0\0" + text))),
        Upload("a JPEG that says 60000x60000", "image/jpeg", bytes(jpeg)),
        Upload("a JPEG of 20000 scans", "image/jpeg", encoded("JPEG")[:-2] + b"\xff\xda\0\x08" * 20000 + b"\xff\xd9"),
        Upload("a BMP that says 40000x40000", "image/bmp", bytes(bmp)),
        Upload("a TIFF of a hundred thousand pages", "image/tiff", many_pages()),
        Upload("a GIF that says 65535x65535", "image/gif",
               b"GIF89a\xff\xff\xff\xff\0\0\0,\0\0\0\0\xff\xff\xff\xff\0\x02\x02D\x01\0;"),
        Upload("a PPM that says a million squared", "image/x-portable-pixmap", b"P6 1000000 1000000 255\n" + bytes(99)),
    ]


def too_large() -> list[Upload]:
    piece = bytes(MB)
    head = b'--xyz\r\nContent-Disposition: form-data; name="image"\r\n\r\n'
    form_type = "multipart/form-data; boundary=xyz"
    return [
        Upload("100 MB with a length", "image/png", bytes(100 * MB), (413,)),
        Upload("100 MB chunked", "image/png", (piece, 100), (413,)),
        Upload("100 MB in a form, chunked", form_type, (head + piece, 100), (413,)),
        Upload("100 MB of preamble", form_type, (b"\r\n" * (MB // 2), 100), (400, 413)),
        Upload("20 MB that is nearly the boundary", form_type, (head + b"\r\n--xy" * (MB // 6), 20), (400, 413)),
        Upload("20 MB and a byte", "image/png", bytes(20 * MB + 1), (413,)),
    ]


def bad_forms() -> list[Upload]:
    kind = "multipart/form-data; boundary=xyz"
    good = encoded("PNG")
    name = b'Content-Disposition: form-data; name="image"'
    return [
        Upload("a field of a huge name", kind,
               form(good, b'Content-Disposition: form-data; name="' + b"n" * MB + b'"'), (400,)),
        Upload("a file of a huge name", kind, form(good, name + b'; filename="' + b"n" * MB + b'"'), (400,)),
        Upload("a thousand headers", kind, form(good, name + b"\r\nA: b" * 1000), (400,)),
        Upload("ten thousand parts", kind, b"--xyz\r\n" + name + b"\r\n\r\nx\r\n" * 1 +
               (b"--xyz\r\n" + name + b"\r\n\r\nx\r\n") * 10_000 + b"--xyz--\r\n", (400,)),
        Upload("two images", kind, b"--xyz\r\n" + name + b"\r\n\r\nx\r\n" + form(good), (400,)),
        Upload("another field", kind, form(good, b'Content-Disposition: form-data; name="picture"'), (400,)),
        Upload("no name", kind, form(good, b"Content-Disposition: form-data"), (400,)),
        Upload("no disposition", kind, form(good, b"X: y"), (400,)),
        Upload("no boundary", "multipart/form-data", form(good), (400,)),
        Upload("another boundary", "multipart/form-data; boundary=abc", form(good), (400,)),
        Upload("a boundary of 10 KB", "multipart/form-data; boundary=" + "b" * 10_000, form(good), (400,)),
        Upload("cut off in the image", kind, form(good)[:-100], (400,)),
        Upload("cut off in a header", kind, form(good)[:20], (400,)),
        Upload("no part", kind, b"--xyz--\r\n", (400,)),
        Upload("nothing", kind, b"", (400,)),
        Upload("no form at all", kind, good, (400,)),
        Upload("an empty image", kind, form(b"")),
        Upload("an image of zeros", kind, form(bytes(1000))),
        Upload("a path for a name", kind, form(b"x", name + b'; filename="../../etc/passwd"')),
        Upload("markup for a name", kind, form(b"x", name + b'; filename="<script>alert(1)</script>"')),
        Upload("bytes that are no text for a name", kind, form(b"x", name + b'; filename="\xff\xfe\0\x01"')),
        Upload("transfer encoding in the part", kind,
               form(b"eA==", name + b"\r\nContent-Transfer-Encoding: base64")),
    ]


def wrong_kinds() -> list[Upload]:
    good = encoded("PNG")
    kinds = ("text/plain", "text/html", "application/json", "application/x-www-form-urlencoded", "application/pdf",
             "application/zip", "video/mp4", "multipart/mixed; boundary=xyz", "", "image", "*/*", "\xff\xfe")
    contents = {
        "a page": b"<html><script>alert(1)</script></html>", "SVG": b'<svg xmlns="http://www.w3.org/2000/svg"/>',
        "a PDF": b"%PDF-1.7\n" + bytes(99), "PostScript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        "a zip": b"PK\x03\x04" + bytes(99), "a program": b"\x7fELF" + bytes(99), "a pickle": b"\x80\x04}\x94.",
        "DICOM": bytes(128) + b"DICM", "AVIF": b"\0\0\0\x1cftypavif" + bytes(99), "a video": b"\0\0\0\x18ftypmp42",
        "text": b"hello", "one byte": b"\0", "nothing": b"", "an icon": b"\0\0\x01\0\x01\0" + bytes(99),
    }
    return ([Upload(f"an image as {kind!r}", kind, good, (415,)) for kind in kinds]
            + [Upload(f"{what} as a PNG", "image/png", content) for what, content in contents.items()])


def damaged() -> list[Upload]:
    """Images cut off, with bytes turned, or random from the first or the ninth byte on."""
    uploads = []
    for kind in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "JPEG2000"):
        whole = encoded(kind)
        uploads += [Upload(f"a {kind} cut off at {part:g}", f"image/{kind.lower()}", whole[:int(len(whole) * part)])
                    for part in (0.02, 0.1, 0.3, 0.5, 0.7, 0.9)]
    rng = np.random.default_rng(5)
    for number, kind in enumerate(["PNG"] * 15 + ["JPEG"] * 15 + ["GIF", "BMP", "TIFF", "WEBP", "JPEG2000"] * 5):
        garbage = rng.bytes(int(rng.integers(10, 5000)))
        uploads.append(Upload(f"random bytes {number} behind {kind}'s first", "image/png", encoded(kind)[:8] + garbage))
    uploads += [Upload(f"random bytes {number}", "application/octet-stream", b"\x01" + rng.bytes(1 + 97 * number))
                for number in range(24)]
    for number in range(10):
        raw = bytearray(encoded("PNG", number=number))
        raw[60 + 7 * number] ^= 1 << (number % 8)
        uploads.append(Upload(f"a PNG with bit {number} turned", "image/png", bytes(raw)))
    return uploads


def uploads() -> list[Upload]:
    return [*bombs(), *too_large(), *bad_forms(), *wrong_kinds(), *damaged()]
