"""Annotations of a project as a set that formats write, and a set that they read into a project."""

from dataclasses import replace

from foveal.annotate.project import Project
from foveal.annotate.records import Edit, Written
from foveal.annotate.types import AnnotatedImage, AnnotatedSet


def of_project(project: Project) -> AnnotatedSet:
    """Return all annotations of a project, in whatever state, with the pictures that have any or are done.

    A picture that is done and has none shows that nothing is on it.

    Raises:
        ProjectError: a picture cannot be read, so that its size is not known.
    """
    annotations = tuple(record.annotation for record in project.annotations())
    named = {one.image for one in annotations}
    uris = [image.uri for image in project.page(0, project.count()) if image.uri in named or image.state == "done"]
    images = tuple(AnnotatedImage(uri, *project.size(uri)) for uri in uris)
    return AnnotatedSet(tuple(one.name for one in project.classes()), images, annotations)


def into_project(annotated: AnnotatedSet, project: Project) -> Written:
    """Add a set's annotations to a project in one step, after the classes that it lacks; none is replaced.

    Args:
        annotated: of pictures of the project.
        project: to write into.

    Raises:
        ProjectError: a picture that is not in the project, or of another size; no annotation is written.
    """
    known = {one.name for one in project.classes()}
    for uri in {one.image for one in annotated.annotations}:
        project.index(uri)
    for name in annotated.classes:
        if name not in known:
            project.add_class(name)
    edits = [Edit(replace(one, id=None)) for one in annotated.annotations]
    return project.write(edits, words=f"import of {len(edits)} annotations")
