"""What kind of file some first bytes belong to."""

from lw_retinanet.errors import ImageError

READ = ("JPEG", "PNG", "WebP", "BMP", "GIF", "TIFF")
_SIGNATURES = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"BM", "BMP"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"II+\0", "TIFF"),
    (b"MM\0+", "TIFF"),
)
_BLANK = b"\xef\xbb\xbf \t\r\n"
_FOREIGN_SIGNATURES = (
    (b"%PDF", "a PDF document"),
    (b"%!PS", "an EPS or PostScript document"),
    (b"\xc5\xd0\xd3\xc6", "an EPS document"),
    (b"8BPS", "a Photoshop document (PSD)"),
    (b"SIMPLE  =", "a FITS image"),
    (b"\0\0\0\x0cjP  ", "a JPEG 2000 image"),
    (b"\xff\x4f\xff\x51", "a JPEG 2000 image"),
    (b"\0\0\0\x0cJXL ", "a JPEG XL image"),
    (b"\xff\x0a", "a JPEG XL image"),
    (b"\0\0\x01\0", "an icon (ICO)"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"PK\x03\x04", "a ZIP archive"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"\x1a\x45\xdf\xa3", "a Matroska or WebM video"),
)


def image_format(head: bytes) -> str:
    """The format of the image whose first bytes are ``head``, one of `READ`.

    Raises:
        ImageError: naming any other format.
    """
    for signature, form in _SIGNATURES:
        if head.startswith(signature):
            return form
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WebP"
    if not head:
        raise ImageError("the file is empty; replace it")
    if not head.strip(b"\0"):
        raise ImageError("holds zero bytes only, not an image; replace the file")
    if head.startswith(b"version https://git-lfs"):
        raise ImageError("is a Git LFS pointer, not the image itself; fetch the images with `git lfs pull`")
    if head.lstrip(_BLANK).lower().startswith((b"<!doctype html", b"<html")):
        raise ImageError("is a web page (a failed download?); download the image again")
    raise ImageError(f"is {_foreign_form(head)}; only {', '.join(READ)} are read, so convert it to one of these")


def _foreign_form(head: bytes) -> str:
    for signature, form in _FOREIGN_SIGNATURES:
        if head.startswith(signature):
            return form
    if head[4:8] == b"ftyp":
        brand = head[8:12]
        if brand in (b"avif", b"avis"):
            return "an AVIF image"
        return "a HEIC image" if brand in (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1") else "an MP4 or MOV video"
    if head[128:132] == b"DICM":
        return "a DICOM image"
    return "an SVG drawing" if b"<svg" in head.lower() else "not an image of a known format"
