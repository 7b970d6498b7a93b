"""Images to train on and to test with, with their range and levels; nothing is downloaded."""

from sdekit.data.bundled import digits, mnist, patches
from sdekit.data.folder import folder
from sdekit.data.images import Images, Source, images

__all__ = ["Images", "Source", "digits", "folder", "images", "mnist", "patches"]
