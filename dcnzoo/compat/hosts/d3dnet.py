"""The compiled module of D3Dnet, a super-resolution of videos."""

from dcnzoo.compat.host import Evidence, Host

HOSTS = (
    Host(
        "D3D",
        {"D3Dnet": Evidence("b65af8cfccfa1c076d0be85015b196f8efc3848a", "2026-11-26")},
        ("dcnzoo.compat.d3d",),
    ),
)
