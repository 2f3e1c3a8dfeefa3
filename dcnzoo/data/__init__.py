"""Object detection data: conversion to COCO, checks, splits, generated data. No torch, no OpenMMLab."""
