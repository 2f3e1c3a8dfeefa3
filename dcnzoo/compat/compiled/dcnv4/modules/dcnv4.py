from dcnzoo.layers import DCNv4 as DCNv4
