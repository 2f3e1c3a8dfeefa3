"""The package ``DCNv2`` and its forks: its module ``dcn_v2`` and the compiled module ``_ext``."""

from dcnzoo.compat.host import Evidence, Host

EXT = ("_ext", "*[Dd][Cc][Nn]*._ext")
HOSTS = (
    Host(
        "_ext",
        {"DCNv2": Evidence("c7f778f28b84c66d3af2bf16f19148a07051dac1", "2026-11-26", "layer")},
        ("dcnzoo.compat.dcn_v2",),
        imports=EXT,
        missing="deformable PSRoI pooling",
    ),
    Host(
        "dcn_v2",
        {
            "CenterTrack": Evidence("e4e7534cc2ebfbd31e0cde680988f286c65fe34f", "2026-11-26"),
            "FairMOT": Evidence("4aa62976bde6266cbafd0509e24c3d98a7d0899f", "2026-11-26"),
            "TraDeS": Evidence("0443c36c2ec716ade2fd2e9748deed1d36f172cd", "2026-11-26"),
            "YOLACT++": Evidence("902073d414728280b496c5f0a59a8e8285b3c13c", "2026-11-26"),
            "FaPN": Evidence("4d400719d3f2b9a4dc38c2132b9984be66219719", "2026-11-26", "backbone"),
        },
        ("dcnzoo.compat.dcn_v2",),
        imports=(*EXT, "dcn_v2", "*.DCNv2", "*.DCNv2.dcn_v2"),
        missing="deformable PSRoI pooling, CenterNet's code of 2019 (cffi)",
    ),
)
