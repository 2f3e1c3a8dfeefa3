"""Name the picture in the errors of a pipeline, and require the size that its annotation states."""

from mmdet.datasets import BaseDetDataset

from dcnzoo.compat.patches import Patch
from dcnzoo.utils.errors import UserError, describe, printable
from dcnzoo.utils.text import problem_of_size

ERRORS_NAME_PICTURES = Patch(
    "errors_name_pictures",
    change=lambda changes: changes.set(BaseDetDataset, "prepare_data", prepare_data),
    target="mmdet.datasets.BaseDetDataset",
    reason="an error of the pipeline does not name the picture; another size gives wrong boxes",
    versions="mmdet 3.3.0",
)


def prepare_data(self: BaseDetDataset, idx: int) -> dict | None:
    """Return the sample of a picture.

    Raises:
        UserError: a step of the pipeline fails, or the picture has another size than its annotation states.
    """
    info = self.get_data_info(idx)
    sample, problem, cause = None, "", None
    try:
        sample = self.pipeline(info)
    except Exception as error:
        problem, cause = describe(error), error
    if "ori_shape" in info:  # the loader writes the size of the file into info
        height, width = info["ori_shape"]
        problem = problem_of_size((width, height), (info.get("width"), info.get("height"))) or problem
    if problem:
        raise UserError(printable(f"{info.get('img_path')}: {problem}")) from cause
    return sample
