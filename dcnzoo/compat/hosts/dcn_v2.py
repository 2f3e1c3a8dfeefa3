"""The package ``DCNv2`` and its forks: its module ``dcn_v2`` and the compiled module ``_ext``."""

from dcnzoo.compat.host import RUN, Host

EXT = ("_ext", "*[Dd][Cc][Nn]*._ext")
HOSTS = (
    Host("_ext", {"DCNv2": RUN, "YOLACT++": RUN}, ("dcnzoo.compat.dcn_v2",), imports=EXT),
    Host(
        "dcn_v2",
        {"CenterTrack": RUN, "FairMOT": RUN, "TraDeS": RUN, "FaPN": ""},
        ("dcnzoo.compat.dcn_v2",),
        imports=(*EXT, "dcn_v2", "*.DCNv2", "*.DCNv2.dcn_v2"),
        missing="CenterNet's code of 2019 (cffi)",
    ),
)
