"""torchvision, where its compiled operators do not load or have no kernels for a device."""

from dcnzoo.compat.host import Host

HOSTS = (Host("torchvision", {"torchvision": ""}),)
