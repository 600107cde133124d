"""The recipe of a job, in its workspace."""

from __future__ import annotations

import msgspec

from batchpipe.errors import FILE_MISSING, WORKSPACE_GONE, PermanentError, StorageTrouble
from batchpipe.model.recipe import Recipe
from batchpipe.model.records import JobRecord
from batchpipe.storage import Folder

RECIPE = "recipe.json"


def write_recipe(workspace: Folder, recipe: Recipe) -> str:
    """Returns its digest, for the record of the job. Raises StorageTrouble."""
    with workspace.writer(RECIPE) as file:
        file.write(recipe.to_json())
    return recipe.digest


def read_recipe(job: JobRecord, workspace: Folder) -> Recipe | None:
    """None for a job without one. Raises StorageTrouble; PermanentError (``workspace_gone``) if it is not that of the
    job any more.
    """
    if not job.recipe:
        return None
    try:
        with workspace.reader(RECIPE) as file:
            recipe = Recipe.from_json(file.read())
    except msgspec.DecodeError:
        recipe = None
    except StorageTrouble as error:
        if error.code != FILE_MISSING:
            raise
        recipe = None
    if recipe is None or recipe.digest != job.recipe:
        message = f"{workspace.path(RECIPE)}: the recipe of job {job.id} is gone or was changed"
        raise PermanentError(message, code=WORKSPACE_GONE)
    return recipe
