"""The compiled modules of InternImage and FlashInternImage."""

from importlib.util import find_spec
from types import ModuleType

from dcnzoo.compat.after_import import call
from dcnzoo.compat.host import Evidence, Host, is_ours
from dcnzoo.compat.hosts.deformable_detr import COMPARED
from dcnzoo.compat.patches import Changes, Patch


def _add_version(changes: Changes) -> None:
    def add(resources: ModuleType) -> None:
        if is_ours(find_spec("DCNv3")):
            version = resources.Distribution(project_name="DCNv3", version="1.1")
            changes.set_item(resources.working_set.by_key, version.key, version)

    changes.callback(call("pkg_resources", add))


REASON = "ops_dcnv3 reads the version of the package DCNv3 with pkg_resources"
STRIDES = "layers with a stride other than 1"
MODULES = ("ext", "modules", "modules.dcnv4", "modules.flash_deform_attn")
HOSTS = (
    Host(
        "DCNv3",
        {"InternImage": Evidence("31c962dc6c1ceb23e580772f7daaa6944694fbe6", "2026-11-26", COMPARED)},
        ("dcnzoo.compat.compiled",),
        patches=(Patch("DCNv3_version", "pkg_resources", REASON, "all", _add_version),),
        missing=STRIDES,
    ),
    Host(
        "DCNv4",
        {"FlashInternImage": Evidence("4b848f7dd7da74ff03f7d278f902c6fd05b391b5", "2026-11-26")},
        ("dcnzoo.compat.dcnv4",),
        imports=("DCNv4", *(f"DCNv4.{name}" for name in MODULES)),
        missing=STRIDES,
    ),
)
