"""The compiled module of D3Dnet, a super-resolution of videos."""

from dcnzoo.compat.host import Host

HOSTS = (Host("D3D", {"D3Dnet": ""}, ("dcnzoo.compat.d3d",)),)
