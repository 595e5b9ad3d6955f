"""The pictures that a file of annotations may name: found in an image set, or taken at their word without one."""

from collections import defaultdict
from pathlib import PurePosixPath

from foveal.annotate.formats.runs import MAX_PIXELS
from foveal.annotate.types import AnnotatedImage
from foveal.errors import BadImageError, FovealError
from foveal.images.decode import read_size
from foveal.images.imageset import ImageSet

_SHOWN = 3


class Pictures:
    """Turns names in a file into uris and sizes.

    With an image set a name is that of the picture whose uri it ends with, or that ends with it, folder by folder; its
    size is that of the picture, and must be what the file says. Without one the name is the uri.
    """

    def __init__(self, images: ImageSet | None = None) -> None:
        self._images = images
        self._by_name: dict[str, list[int]] = defaultdict(list)
        self._missing: list[str] = []
        for index, uri in enumerate(images.rows.column("uri").to_pylist() if images is not None else ()):
            self._by_name[uri.rpartition("/")[2]].append(index)

    def find(self, name: str, width: int | None = None, height: int | None = None) -> AnnotatedImage | None:
        """Return the picture of a name, or None where the image set lacks it; `check_found` tells of all of these.

        Args:
            name: as the file has it.
            width: as the file has it, pixels; None where it says nothing.
            height: likewise.

        Raises:
            FovealError: a name that fits several pictures, or leaves its folder; a picture that cannot be read, or of
                another size; a size that nothing tells.
        """
        if self._images is None:
            return self._named(name, width, height)
        if (index := self.index(name)) is None:
            self._missing.append(name)
            return None
        uri = self._images.uri(index)
        try:
            found = AnnotatedImage(uri, *read_size(self._images.read(index)))
        except BadImageError as error:
            raise FovealError(f"{uri}, which has annotations, cannot be read: {error}; repair it") from error
        if (width, height) not in ((None, None), found[1:]):
            raise FovealError(
                f"{name} is of {width} x {height} pixels where it was annotated, and {uri} of {found.width} x "
                f"{found.height} (upright); give the image set that was annotated"
            )
        return found

    def frame(self, number: int) -> str:
        """Return the uri of a frame of a video: the set's pictures in its order.

        Raises:
            FovealError: there is no image set, or no such frame.
        """
        if self._images is None:
            raise FovealError("a track numbers frames and names no pictures; give the image set of the frames")
        if not 0 <= number < len(self._images):
            raise FovealError(
                f"frame {number} is annotated, and the image set has {len(self._images)}; give all frames"
            )
        return self._images.uri(number)

    def check_found(self) -> None:
        """Refuse a file that names pictures which the image set lacks."""
        if self._missing:
            more = f" and {len(self._missing) - _SHOWN} more" if len(self._missing) > _SHOWN else ""
            shown = ", ".join(self._missing[:_SHOWN])
            raise FovealError(
                f"the image set lacks {len(self._missing)} annotated pictures: {shown}{more}; give the annotated set"
            )

    def _named(self, name: str, width: int | None, height: int | None) -> AnnotatedImage:
        check_name(name)
        if width is None or height is None:
            raise FovealError(f"the size of {name} is not said; give the image set that was annotated")
        if width < 1 or height < 1 or width * height > MAX_PIXELS:
            raise FovealError(f"{name} is of {width} x {height} pixels; allowed are 1 to {MAX_PIXELS} in all")
        return AnnotatedImage(name, width, height)

    def index(self, name: str) -> int | None:
        """Return the row of a picture in the image set, which must be given; None where it lacks it.

        Raises:
            FovealError: a name that fits several.
        """
        assert self._images is not None
        parts = PurePosixPath(name.replace("\\", "/")).parts
        fitting = []
        for index in self._by_name.get(parts[-1] if parts else "", ()):
            uri = self._images.uri(index)
            if uri == name:
                return index
            of_set = PurePosixPath(uri).parts
            if parts[-len(of_set) :] == of_set or of_set[-len(parts) :] == parts:
                fitting.append(index)
        if len(fitting) > 1:
            seen = ", ".join(self._images.uri(index) for index in fitting[:_SHOWN])
            raise FovealError(f"{name} may be any of {len(fitting)} pictures: {seen}, ...; name its folder too")
        return fitting[0] if fitting else None


def check_name(name: str) -> None:
    """Refuse a name of a picture that is no path within a folder: absolute, or with parts such as `..`.

    Raises:
        FovealError: it is named.
    """
    path = PurePosixPath(name)
    odd = not name.strip() or not name.isprintable() or "\\" in name or path.as_posix() != name
    if odd or path.is_absolute() or {"..", "."} & set(path.parts):
        raise FovealError(f"{name!r} is no path of a picture within a folder; give the image set that was annotated")
