"""The families of MMDetection, which are the folders of its configs, and the config that represents each."""

from pathlib import Path

from dcnzoo.utils.folders import mim_folder

# families for which `representative` would choose a config without the family's main feature
REPRESENTATIVES = {
    "centernet": "centernet_r18-dcnv2_8xb16-crop512-140e_coco.py",
    "dcn": "mask-rcnn_r50-dconv-c3-c5_fpn_1x_coco.py",
    "dcnv2": "mask-rcnn_r50-mdconv-c3-c5_fpn_1x_coco.py",
    "glip": "glip_atss_swin-t_a_fpn_dyhead_16xb2_ms-2x_funtune_coco.py",
    "gcnet": "mask-rcnn_r50-gcb-r16-c3-c5_fpn_1x_coco.py",
    "guided_anchoring": "ga-faster-rcnn_r50_fpn_1x_coco.py",
    "libra_rcnn": "libra-faster-rcnn_r50_fpn_1x_coco.py",
    "regnet": "mask-rcnn_regnetx-3.2GF_fpn_1x_coco.py",
    "rtmdet": "rtmdet-ins_tiny_8xb32-300e_coco.py",
    "sort": "sort_faster-rcnn_r50_fpn_8xb2-4e_mot17train_test-mot17test.py",
    "strongsort": "strongsort_yolox_x_8xb4-80e_crowdhuman-mot20train_test-mot20test.py",
}
SIZES = ("r50_", "r50-", "tiny", "-t_", "-t-", "r18")
NO_MODELS = ("_base_", "common", "deploy")  # only base configs, or configs for mmdeploy


def configs_in(folder: Path) -> list[Path]:
    """List the configs in a folder, relative to it, without base configs."""
    paths = (path.relative_to(folder) for path in folder.rglob("*.py"))
    return sorted(path for path in paths if "_base_" not in path.parts)


def families() -> dict[str, str]:
    """Return the config of each family as ``mmdet::family/config.py``."""
    names: dict[str, list[str]] = {}
    for path in configs_in(mim_folder("mmdet") / "configs"):
        family, *rest = path.parts
        if rest and family not in NO_MODELS and not path.name.startswith("_"):
            names.setdefault(family, []).append("/".join(rest))
    chosen = {family: representative(configs) for family, configs in sorted(names.items())} | REPRESENTATIVES
    return {family: f"mmdet::{family}/{name}" for family, name in chosen.items()}


def representative(names: list[str]) -> str:
    """Return the smallest and simplest config by its name; avoid subfolders if possible."""

    def key(name: str) -> tuple:
        sizes = [i for i, size in enumerate(SIZES) if size in name]
        return name.count("/"), min(sizes, default=len(SIZES)), len(name), name

    return min(names, key=key)


FAMILIES = families()
