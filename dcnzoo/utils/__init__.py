"""What every other package of dcnzoo may use: errors, files, downloads. No torch, no OpenMMLab."""
