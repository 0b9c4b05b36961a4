"""Names of video files: what is read as a video, and what can be written."""

from pathlib import Path

# The suffix only tells a video from an image before anything is read; what the file is follows from its content.
SUFFIXES = frozenset(
    (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".ts", ".mts", ".m2ts", ".wmv", ".flv", ".3gp", ".ogv")
)
# Codecs that OpenCV's own FFmpeg encodes, the preferred one first. VP9 takes five times as long as VP8, and H.264 is not among them.
CODECS = {".webm": ("VP80", "VP90"), ".mp4": ("mp4v",), ".m4v": ("mp4v",), ".mov": ("mp4v",), ".mkv": ("mp4v", "VP80"), ".avi": ("MJPG",)}


def is_video(path: str | Path) -> bool:
    """Whether a name is that of a video."""
    return Path(path).suffix.lower() in SUFFIXES
