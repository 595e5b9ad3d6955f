"""The recipe's section on distillation."""

import re
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, Field

from foveal.backbone.variants import BackboneConfig, multiple_of_patch

if TYPE_CHECKING:
    from foveal.pretrain.recipe import Recipe

# Sections and keys of the recipe that an objective does not read. Students are small enough to be held whole.
_LAYOUT = ("parallel.strategy", "parallel.compile", "parallel.recompute")
_UNREAD = {
    "heads": (*_LAYOUT, "masks", "distill.cls_weight", "distill.patch_weight", "distill.relation_weight"),
    "features": (
        *_LAYOUT,
        "masks",
        "heads",
        "objective",
        "teacher.temperature_start",
        "teacher.temperature_end",
        "teacher.temperature_warmup_steps",
    ),
}


class DistillSettings(BaseModel):
    """Learn from a frozen teacher; see docs/distill.md.

    The student is `backbone`; `students` are further ones that learn beside it from the same pass of the teacher.

    objective: "heads" is the paper's: the pretraining objective with the frozen teacher and its heads in place of the
    moving average; "features" needs no heads: tokens are predicted, and patches keep the teacher's similarities. The
    three weights belong to "features".
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    teacher: str = Field(min_length=1)
    objective: Literal["heads", "features"] = "heads"
    students: dict[str, BackboneConfig] = {}
    cls_weight: float = Field(default=1.0, ge=0)
    patch_weight: float = Field(default=1.0, ge=0)
    relation_weight: float = Field(default=1.0, ge=0)


def misfit(recipe: "Recipe") -> str:
    """Return what in a recipe does not fit its section on distillation, or an empty string."""
    distill = recipe.distill
    if distill is None:
        of_library = f"backbone.variant={recipe.backbone.variant} is of another library, which only distillation trains"
        return f"{of_library}; give distill.teacher" if ":" in recipe.backbone.variant else ""
    for section in _UNREAD[distill.objective]:
        name, _, field = section.partition(".")
        values = getattr(recipe, name)
        default = DistillSettings(teacher="-") if name == "distill" else type(values)()
        for key in [field] if field else type(values).model_fields:
            if getattr(values, key) != getattr(default, key):
                return f"{name}.{key} has no effect with distill.objective={distill.objective}; leave it out"
    if distill.objective == "features" and recipe.views.num_local:
        return (
            f"views.num_local={recipe.views.num_local}: local crops have no effect with distill.objective=features, "
            "where student and teacher see the same crop; set views.num_local=0"
        )
    if distill.students and recipe.start is not None:
        return "start has no effect on distill.students; leave one of the two out, or distil in several runs"
    return next((problem for name in distill.students if (problem := _student_misfit(recipe, name))), "")


def _student_misfit(recipe: "Recipe", name: str) -> str:
    assert recipe.distill is not None
    student, key = recipe.distill.students[name], f"distill.students.{name}"
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or name == "model":
        return f"{key} is no name for a student; use small letters, digits and _, such as small, and not model"
    if student.channels != recipe.backbone.channels:
        return f"{key}.channels={student.channels}, backbone.channels={recipe.backbone.channels}; they must be equal"
    for view in ("global_size", "local_size"):
        size = getattr(recipe.views, view)
        if size % student.patch_size and (view == "global_size" or recipe.views.num_local):
            return f"{key}: " + multiple_of_patch(f"views.{view}", size, student.patch_size)
    return ""
